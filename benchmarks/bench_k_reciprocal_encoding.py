"""k_reciprocal_encoding against the published dense encoding."""

import numpy as np
import pytest

import dmic

from . import baselines
from .sizes import K1, K1_HALF

pytestmark = pytest.mark.benchmark(group="k_reciprocal_encoding")


def test_dmic(measure, gallery, neighbor_idx, encoding):
    measure(dmic.k_reciprocal_encoding, gallery.features, neighbor_idx, K1_HALF, nnz=encoding.nnz)


def test_published(measure, gallery, neighbor_idx, encoding):
    dense = measure(baselines.encode, gallery.features, neighbor_idx, K1)
    assert np.allclose(dense, encoding.to_float().to_dense(), rtol=0, atol=1e-5)
