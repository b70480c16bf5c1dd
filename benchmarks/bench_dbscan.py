"""dbscan against scikit-learn on the same sparse distances and on the published dense ones."""

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

import dmic

from . import baselines
from .sizes import EPS, MIN_SAMPLES

pytestmark = pytest.mark.benchmark(group="dbscan")


def sparse_dbscan(distance) -> np.ndarray:
    return DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed", n_jobs=-1).fit_predict(distance)


def test_dmic(measure, distance):
    measure(dmic.dbscan, distance, EPS, MIN_SAMPLES, nnz=distance.nnz)


def test_scikit_learn_sparse(measure, distance):
    labels = measure(sparse_dbscan, distance.to_scipy(), nnz=distance.nnz)
    assert np.array_equal(labels, dmic.dbscan(distance, EPS, MIN_SAMPLES)[0])


def test_scikit_learn_dense(measure, dense_distance):
    measure(baselines.cluster, dense_distance, EPS, MIN_SAMPLES)
