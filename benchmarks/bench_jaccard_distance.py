"""jaccard_distance, near pairs only and all pairs, against the published dense distance."""

import numpy as np
import pytest

import dmic

from . import baselines
from .sizes import EPS

pytestmark = pytest.mark.benchmark(group="jaccard_distance")


@pytest.mark.parametrize("max_distance", [EPS, 1.0])
def test_dmic(measure, benchmark, expanded, max_distance):
    result = measure(dmic.jaccard_distance, expanded, max_distance, max_distance=max_distance)
    benchmark.extra_info["nnz"] = result.nnz


def test_published(measure, dense_expanded, distance):
    dense = measure(baselines.jaccard, dense_expanded)
    row_idx = np.repeat(np.arange(distance.num_rows), np.diff(distance.row_ptr))
    assert np.allclose(dense[row_idx, distance.col_idx], distance.values, rtol=0, atol=1e-5)
