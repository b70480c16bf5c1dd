"""What one would run on a GPU without this package: searches by a blocked product and topk, the published dense
pipeline on torch, and sparse matrices on cupy. Plain torch, so that they run on a CPU as well."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from dmic import NOISE


def search(
    features: torch.Tensor, k1: int, dtype: torch.dtype, num_rows: int, block_bytes: int = 1 << 32
) -> torch.Tensor:
    """The k1 nearest samples of the first `num_rows` samples, by a product in `dtype` and topk: int64 [num_rows, k1].

    Not certified: what the product rounds can change the lists.
    """
    single = features.float()
    half_norm_sq = (single * single).sum(1) / 2
    x, bias = features.to(dtype), -half_norm_sq.to(dtype)
    block_rows = max(1, block_bytes // (len(x) * x.element_size()))
    blocks = (torch.addmm(bias, block, x.T) for block in x[:num_rows].split(block_rows))
    return torch.cat([scores.topk(k1).indices for scores in blocks])


def encode(features: torch.Tensor, ranks: torch.Tensor, k1: int) -> torch.Tensor:
    """The dense encoding V of the published pipeline, float32 [N, N], with matrices of 0 and 1 for its sets."""
    n, exact = len(features), torch.float16 if features.is_cuda else torch.float32  # counts of at most 2,048 are exact
    k1_half = round(k1 / 2)  # half to even, as numpy.around

    def reciprocal(num_columns: int) -> torch.Tensor:
        listed = torch.zeros(n, n, dtype=torch.bool, device=features.device)
        listed.scatter_(1, ranks[:, :num_columns], True)
        return listed & listed.T

    near, half = reciprocal(k1), reciprocal(k1_half + 1).to(exact)
    shared = near.to(exact) @ half.T
    added = near & (shared > 2 / 3 * half.sum(1))
    del shared
    expanded = near | (added.to(exact) @ half > 0)
    del near, half, added
    weights = torch.exp(-(2 - 2 * (features @ features.T))).masked_fill_(~expanded, 0)
    return weights / weights.sum(1, keepdim=True)


def shares(
    neighbor_idx: torch.Tensor, camera_ids: torch.Tensor | None, modality_ids: torch.Tensor | None
) -> torch.Tensor:
    """Weight of each listed neighbour in the nested mean over modalities, cameras and samples, float32 [N, k2]."""

    def same(ids: torch.Tensor | None) -> torch.Tensor:
        listed = torch.zeros_like(neighbor_idx) if ids is None else ids[neighbor_idx]
        return listed[:, :, None] == listed[:, None, :]

    same_modality = same(modality_ids)
    same_camera = same_modality & same(camera_ids)
    of_camera, of_modality = same_camera.sum(2), same_modality.sum(2)
    cameras = (same_modality / of_camera[:, None, :]).sum(2)
    modalities = (1 / of_modality).sum(1, keepdim=True)
    return 1 / (modalities * cameras * of_camera)


def expand(encoding: torch.Tensor, neighbor_idx: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """V' = the mean of the neighbours' rows, weighted by `share`; float32 [N, N]."""
    n, k2 = neighbor_idx.shape
    row_ptr = torch.arange(0, n * k2 + 1, k2, device=encoding.device)
    order = neighbor_idx.argsort(1)
    col_idx, values = neighbor_idx.gather(1, order).flatten(), share.gather(1, order).flatten()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        mean = torch.sparse_csr_tensor(row_ptr, col_idx, values, (n, n), check_invariants=False)
    return mean @ encoding


def jaccard(expanded: torch.Tensor) -> torch.Tensor:
    """J of every pair, float32 [N, N], row by row over the columns that the row has, as published."""
    columns = expanded.T.contiguous()
    distance = torch.empty_like(expanded)
    for i, row in enumerate(expanded):
        nonzero = row.nonzero()[:, 0]
        overlap = torch.minimum(columns[nonzero], row[nonzero, None]).sum(0)
        distance[i] = 1 - overlap / (2 - overlap)
    return distance.clamp_(min=0)


def cluster(distance: torch.Tensor, eps: float, min_samples: int) -> torch.Tensor:
    """DBSCAN's labels, int64 [N], -1 for noise: the smallest index spreads over the pairs of core samples."""
    n = len(distance)
    near = distance <= eps
    core = near.sum(1) >= min_samples
    rows, cols = near.nonzero().T
    joined = core[rows] & core[cols]
    start, end = rows[joined], cols[joined]
    root = torch.arange(n, device=distance.device)
    while True:
        lower = root.scatter_reduce(0, start, root[end], "amin")
        lower = lower[lower]
        if torch.equal(lower, root):
            break
        root = lower
    numbers = torch.cumsum(core & (root == torch.arange(n, device=root.device)), 0) - 1
    labels = torch.full_like(root, n)
    labels[core] = numbers[root[core]]
    border = ~core[rows] & core[cols]
    labels.scatter_reduce_(0, rows[border], labels[cols[border]], "amin")
    return labels.masked_fill_(labels == n, -1)


def published(
    features: torch.Tensor,
    camera_ids: torch.Tensor,
    modality_ids: torch.Tensor,
    k1: int,
    k2: int,
    eps: float,
    min_samples: int,
) -> torch.Tensor:
    """From features to labels, dense at every step."""
    ranks = search(features, k1, torch.float32, len(features))
    encoding = encode(features, ranks, k1)
    neighbor_idx = ranks[:, :k2]
    expanded = expand(encoding, neighbor_idx, shares(neighbor_idx, camera_ids, modality_ids))
    del encoding
    return cluster(jaccard(expanded), eps, min_samples)


def sparse_expand(encoding: Any, neighbor_idx: Any, share: Any, library: Any, sparse: Any) -> Any:
    """V' as a product of sparse matrices of cupy or scipy; encoding is one of theirs, the rest are their arrays."""
    n, k2 = neighbor_idx.shape
    row_ptr = library.arange(0, n * k2 + 1, k2, dtype=library.int32)
    return sparse.csr_matrix((share.ravel(), neighbor_idx.ravel(), row_ptr), shape=(n, n)) @ encoding


def sparse_near_pairs(expanded: Any, max_distance: float, library: Any, sparse: Any, chunk: int = 1 << 17) -> Any:
    """The pairs within max_distance: a sparse product finds those that share a column, elementwise minima give J."""
    pattern = sparse.csr_matrix((library.ones_like(expanded.data), expanded.indices, expanded.indptr), expanded.shape)
    pairs = (pattern @ pattern.T).tocoo()
    overlap = library.concatenate(
        [
            library.asarray(
                expanded[pairs.row[at : at + chunk]].minimum(expanded[pairs.col[at : at + chunk]]).sum(1)
            ).ravel()
            for at in range(0, len(pairs.row), chunk)
        ]
    )
    distance = (1 - overlap / (2 - overlap)).clip(0)
    near = distance <= max_distance
    return sparse.coo_matrix((distance[near], (pairs.row[near], pairs.col[near])), shape=expanded.shape)


def compare_labels(labels: torch.Tensor, want: torch.Tensor) -> dict[str, object]:
    """How far two clusterings agree. Clusters that are each other's largest part are matched, and noise with noise:
    `differing_samples` is never less than after the best matching, and seldom more."""
    pairs, counts = torch.stack([labels, want]).unique(dim=1, return_counts=True)
    shared = {tuple(pair): count for pair, count in zip(pairs.T.tolist(), counts.tolist(), strict=True)}
    matched = shared.pop((NOISE, NOISE), 0)
    largest: list[dict[int, tuple[int, int]]] = [{}, {}]
    for pair, count in shared.items():
        if NOISE not in pair:
            for side in (0, 1):
                mine, theirs = pair[side], pair[1 - side]
                largest[side][mine] = max(largest[side].get(mine, (0, 0)), (count, theirs))
    matched += sum(count for mine, (count, theirs) in largest[0].items() if largest[1][theirs] == (count, mine))
    return {
        "equal": bool(torch.equal(labels, want)),
        "equal_up_to_renumbering": matched == len(labels),
        "differing_samples": len(labels) - matched,
    }
