"""round_features against the same in torch operations."""

import pytest
import torch

from dmic.ops import round_features

pytestmark = pytest.mark.benchmark(group="round_features")

EXPONENT = 5  # unit rows of 2048 columns: keeps typical values clear of float16's subnormals


def in_torch(features: torch.Tensor, exponent: int) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = features * 2.0**exponent
    rounded = scaled.half()
    return rounded, (scaled - rounded).norm(dim=1)


def test_dmic(measure, gallery):
    measure(round_features, torch.from_numpy(gallery.features), EXPONENT)


def test_torch(measure, gallery):
    measure(in_torch, torch.from_numpy(gallery.features), EXPONENT)
