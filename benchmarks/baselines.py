"""What the suite measures beside this package: the published dense pipeline, and single steps in common libraries.

The pipeline is written from the description of the method with the data structures and loops that the field's
repositories share: an N x N float32 encoding, numpy set operations row by row, a list of inverted indices from column
scans, an N x N float32 distance, and DBSCAN on it with metric="precomputed" and n_jobs=-1.
"""

from __future__ import annotations

import faiss
import numpy as np
import torch
from scipy import sparse
from sklearn.cluster import DBSCAN


def search(features: np.ndarray, k1: int) -> np.ndarray:
    """The k1 nearest samples of each sample, itself included: int64 [N, k1], by faiss's exact index."""
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features)
    return index.search(features, k1)[1]


def search_in_torch(features: np.ndarray, k1: int, block_rows: int = 1024) -> np.ndarray:
    """The same by blocks of a float32 product and topk: int64 [N, k1]."""
    x = torch.from_numpy(features)
    norm_sq = (x * x).sum(1)
    scores = (torch.addmm(norm_sq, block, x.T, alpha=-2) for block in x.split(block_rows))
    return torch.cat([block.topk(k1, largest=False).indices for block in scores]).numpy()


def reciprocal_neighbors(ranks: np.ndarray, i: int, num_columns: int) -> np.ndarray:
    forward = ranks[i, :num_columns]
    backward = ranks[forward, :num_columns]
    return forward[np.where(backward == i)[0]]


def encode(features: np.ndarray, ranks: np.ndarray, k1: int) -> np.ndarray:
    """The dense encoding V, float32 [N, N]."""
    n = len(features)
    k1_half = int(np.around(k1 / 2))
    reciprocal = [reciprocal_neighbors(ranks, i, k1) for i in range(n)]
    half = [reciprocal_neighbors(ranks, i, k1_half + 1) for i in range(n)]
    encoding = np.zeros((n, n), np.float32)
    for i in range(n):
        expanded = reciprocal[i]
        for candidate in reciprocal[i]:
            near = half[candidate]
            if len(np.intersect1d(near, reciprocal[i])) > 2 / 3 * len(near):
                expanded = np.append(expanded, near)
        expanded = np.unique(expanded)
        weights = np.exp(-(2 - 2 * (features[expanded] @ features[i])))
        encoding[i, expanded] = weights / weights.sum()
    return encoding


def sample_in_torch(features: np.ndarray, row_ptr: np.ndarray, col_idx: np.ndarray) -> np.ndarray:
    """Dot products of the pairs that a pattern stores, float32 [nnz]; on a CPU this is MKL's."""
    x = torch.from_numpy(features)
    arrays = torch.from_numpy(row_ptr), torch.from_numpy(col_idx).long(), torch.zeros(len(col_idx))
    pattern = torch.sparse_csr_tensor(*arrays, size=(len(x), len(x)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, x, x.T, beta=0).values().numpy()


def expand(
    encoding: np.ndarray,
    ranks: np.ndarray,
    k2: int,
    camera_ids: np.ndarray | None = None,
    modality_ids: np.ndarray | None = None,
) -> np.ndarray:
    """V': nested means of the rows of the k2 nearest samples, float32 [N, N]; absent ids: one camera, one modality.

    One product per row, which is faster than the chains of numpy.mean found in published code.
    """
    if k2 == 1:
        return encoding
    n = len(encoding)
    cameras = np.zeros(n, np.int64) if camera_ids is None else camera_ids
    modalities = np.zeros(n, np.int64) if modality_ids is None else modality_ids
    expanded = np.zeros_like(encoding)
    for i in range(n):
        neighbors = ranks[i, :k2]
        share = np.zeros(k2, np.float32)
        present = np.unique(modalities[neighbors])
        for modality in present:
            of_modality = modalities[neighbors] == modality
            seen_by = np.unique(cameras[neighbors[of_modality]])
            for camera in seen_by:
                members = of_modality & (cameras[neighbors] == camera)
                share[members] = 1 / (len(present) * len(seen_by) * members.sum())
        expanded[i] = share @ encoding[neighbors]
    return expanded


def jaccard(expanded: np.ndarray) -> np.ndarray:
    """J of every pair, float32 [N, N]."""
    n = len(expanded)
    inverted = [np.where(expanded[:, column] != 0)[0] for column in range(n)]
    distance = np.zeros((n, n), np.float32)
    for i in range(n):
        overlap = np.zeros(n, np.float32)
        for column in np.where(expanded[i] != 0)[0]:
            rows = inverted[column]
            overlap[rows] += np.minimum(expanded[i, column], expanded[rows, column])
        distance[i] = 1 - overlap / (2 - overlap)
    distance[distance < 0] = 0
    return distance


def sparse_jaccard(expanded: sparse.csr_array, max_distance: float) -> sparse.csr_array:
    """J of the pairs within max_distance, float64 [N, N], in both directions, with the diagonal (a stored zero)."""
    by_column = expanded.T.tocsr()
    cols, values, lengths = [], [], []
    for i in range(expanded.shape[0]):
        row = slice(expanded.indptr[i], expanded.indptr[i + 1])
        lists = by_column[expanded.indices[row]]
        smaller = np.minimum(np.repeat(expanded.data[row], np.diff(lists.indptr)), lists.data)
        overlap = np.bincount(lists.indices, smaller, minlength=1)
        near = np.flatnonzero(overlap)
        distance = np.maximum(1 - overlap[near] / (2 - overlap[near]), 0)
        kept = distance <= max_distance
        cols.append(near[kept])
        values.append(distance[kept])
        lengths.append(int(kept.sum()))
    row_ptr = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_array((np.concatenate(values), np.concatenate(cols), row_ptr), shape=expanded.shape)


def round_in_torch(features: torch.Tensor, exponent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 [N, d] and what rounding lost, float32 [N]; without a bound on the error of that."""
    scaled = features * 2.0**exponent
    rounded = scaled.half()
    return rounded, (scaled - rounded).norm(dim=1)


def cluster(distance: np.ndarray | sparse.csr_array, eps: float, min_samples: int) -> np.ndarray:
    """Labels int64 [N], -1 for noise."""
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed", n_jobs=-1).fit_predict(distance)
