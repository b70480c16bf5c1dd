"""The method once more, dense and in float64, from its description and from scipy and scikit-learn.

Written without a look at `dmic.reference` and in another style (matrices instead of sets), so that a mistake in one
is not a mistake in the other. Nothing here knows fixed point: the tests allow for it with the tolerances below.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.spatial.distance import cdist
from scipy.special import log_softmax
from sklearn.cluster import DBSCAN

from dmic import Csr

UNIT = 2.0**-30  # resolution of an encoding
FLOAT32_ROUNDING = 2.0**-24  # relative error of one rounding to float32


def squared_distances(features: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances by differences (not by norms and products), float64 [N, N]."""
    features = np.asarray(features, np.float64)
    return cdist(features, features, "sqeuclidean")


def squared_distance_tolerance(features: np.ndarray) -> np.ndarray:
    """[N, N] bound on |float32(|x|^2 + |y|^2 - 2 x.y) - exact|, without the final rounding to float32.

    Three sums of d float64 terms each; the classic bound is d * 2**-53 times the sum of the absolute terms, which is
    at most (|x| + |y|)^2. One more of the same for the sums in `squared_distances`.
    """
    norm = np.linalg.norm(np.asarray(features, np.float64), axis=1)
    return 2 * (features.shape[1] + 3) * 2.0**-53 * np.add.outer(norm, norm) ** 2


def exact_neighbors(features: np.ndarray, k1: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of integer-valued features in integer arithmetic; ties to the lower index. (idx, squared distance)"""
    x = np.asarray(features).astype(np.int64)
    assert (x == features).all(), "exact only for integer features"
    norm_sq = (x * x).sum(1)
    products = np.asarray(features, np.float64) @ np.asarray(features, np.float64).T  # exact: all sums < 2**53
    distances = norm_sq[:, None] + norm_sq[None] - 2 * products.astype(np.int64)
    idx = np.argsort(distances, axis=1, kind="stable")[:, :k1]
    return idx, np.take_along_axis(distances, idx, axis=1)


def membership(neighbor_idx: np.ndarray, num_columns: int) -> np.ndarray:
    """[N, N] bool: is column j among the first `num_columns` neighbours of row i."""
    n = len(neighbor_idx)
    member = np.zeros((n, n), bool)
    member[np.arange(n)[:, None], neighbor_idx[:, :num_columns]] = True
    return member


def expanded_sets(neighbor_idx: np.ndarray, k1_half: int) -> np.ndarray:
    """S as a [N, N] bool matrix."""
    near, near_half = membership(neighbor_idx, neighbor_idx.shape[1]), membership(neighbor_idx, k1_half + 1)
    reciprocal, half = near & near.T, near_half & near_half.T
    shared = reciprocal.astype(np.int32) @ half.T.astype(np.int32)  # [i, q] = |H(q) & K(i)|
    taken = reciprocal & (3 * shared > 2 * half.sum(1)[None, :])
    return reciprocal | (taken.astype(np.int32) @ half.astype(np.int32) > 0)


def encoding(features: np.ndarray, neighbor_idx: np.ndarray, k1_half: int) -> np.ndarray:
    """V, float64 [N, N]; rows of samples whose expanded set is empty are zero."""
    features = np.asarray(features, np.float64)
    members = expanded_sets(np.asarray(neighbor_idx), k1_half)
    weights = np.zeros(members.shape)
    for i in np.flatnonzero(members.any(1)):
        columns = np.flatnonzero(members[i])
        weights[i, columns] = np.exp(log_softmax(-(2 - 2 * features[columns] @ features[i])))
    return weights


def invariant_expansion(
    weights: np.ndarray,
    neighbor_idx: np.ndarray,
    k2: int,
    camera_ids: np.ndarray | None = None,
    modality_ids: np.ndarray | None = None,
) -> np.ndarray:
    """V' as literal nested means of rows of `weights` [N, N]: samples to cameras, cameras to modalities, to one row."""
    n = len(weights)
    cameras = np.zeros(n) if camera_ids is None else np.asarray(camera_ids)
    modalities = np.zeros(n) if modality_ids is None else np.asarray(modality_ids)
    filled = weights.any(1)
    result = np.zeros_like(weights)
    for i, neighbors in enumerate(np.asarray(neighbor_idx)[:, :k2]):
        neighbors = neighbors[filled[neighbors]]
        modality_means = []
        for modality in np.unique(modalities[neighbors]):
            of_modality = neighbors[modalities[neighbors] == modality]
            camera_means = [
                weights[of_modality[cameras[of_modality] == camera]].mean(0)
                for camera in np.unique(cameras[of_modality])
            ]
            modality_means.append(np.mean(camera_means, axis=0))
        if modality_means:
            result[i] = np.mean(modality_means, axis=0)
    return result


def jaccard_distance(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """J and the overlap s of every pair of rows of `weights` (float64 [N, N], rows summing to 1 or 0)."""
    overlap = np.stack([np.minimum(row, weights).sum(1) for row in weights]) if len(weights) else np.zeros((0, 0))
    return np.maximum(0.0, 1.0 - overlap / (2.0 - overlap)), overlap


def dbscan(distance: np.ndarray | Csr, eps: float, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and core mask of scikit-learn on a dense [N, N] array, or on a Csr as its sparse precomputed input."""
    if isinstance(distance, Csr):
        distance = scipy.sparse.csr_matrix(
            tuple(np.asarray(a) for a in (distance.values, distance.col_idx, distance.row_ptr)), shape=distance.shape
        )
    fitted = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance)
    core_mask = np.zeros(len(fitted.labels_), bool)
    core_mask[fitted.core_sample_indices_] = True
    return fitted.labels_, core_mask
