"""invariant_expansion, all four variants, against the published dense average."""

import numpy as np
import pytest

import dmic

from . import baselines
from .sizes import K2

pytestmark = pytest.mark.benchmark(group="invariant_expansion")

VARIANTS = {
    "plain": (),
    "camera": ("camera_ids",),
    "modality": ("modality_ids",),
    "modality_camera": ("camera_ids", "modality_ids"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_dmic(measure, benchmark, gallery, neighbor_idx, encoding, variant):
    ids = {name: getattr(gallery, name) for name in VARIANTS[variant]}
    result = measure(lambda: dmic.invariant_expansion(encoding, neighbor_idx, K2, **ids), variant=variant)
    benchmark.extra_info["nnz"] = result.nnz


def test_published(measure, gallery, neighbor_idx, dense_encoding, expanded):
    ids = (gallery.camera_ids, gallery.modality_ids)
    dense = measure(baselines.expand, dense_encoding, neighbor_idx, K2, *ids, variant="modality_camera")
    assert np.allclose(dense, expanded.to_float().to_dense(), rtol=0, atol=1e-5)
