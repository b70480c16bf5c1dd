"""The specification: every op again, slow and readable, in numpy float64 and Python integers.

Nothing here is fast and nothing here is approximate. The compiled ops must return these bits, on every
device; the tests compare with ``torch.equal``. The paper's symbols are R (neighbour list), K (k-reciprocal
set), H (half set), S (expanded set), V (encoding) and J (distance); ``docs/algorithm.md`` maps them to names.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .csr import Csr

LANES = 128  # interleaved partial sums of a dot product
ONE = 1 << 30  # the fixed-point value of probability 1
NOISE = -1  # label of a sample outside every cluster

# exp(r) on [-ln(2)/2, ln(2)/2] as a Taylor polynomial; ln(2) split so that n * LN2_HI is exact for n < 2**11
LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LN2_HI = float.fromhex("0x1.62e42fee00000p-1")
LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")
EXP_FLUSH = -40.0  # exp(-40) < 2**-57: far below half a unit of 2**-32
EXP_COEFFICIENTS = (
    1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
    1 / 720.0, 1 / 120.0, 1 / 24.0, 1 / 6.0, 1 / 2.0, 1.0, 1.0,
)  # fmt: skip


def ordered_sum(terms: np.ndarray) -> np.ndarray:
    """Sum over the last axis in the canonical order: partial sum l adds terms l, l + 128, l + 256, ... in turn, then
    the 128 sums are folded in halves. terms: float64 [..., d]; float64 [...]."""
    d = terms.shape[-1]
    sums = np.zeros((*terms.shape[:-1], LANES))
    for start in range(0, d, LANES):
        width = min(LANES, d - start)
        sums[..., :width] += terms[..., start : start + width]
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dot product of float32 rows [..., d], broadcast against each other; float64 [...].

    The product of two float32 is exact in float64, so only the order of the additions matters.
    """
    return ordered_sum(np.asarray(x, np.float32).astype(np.float64) * np.asarray(y, np.float32))


def exp(t: np.ndarray) -> np.ndarray:
    """exp(t) for t <= 0, float64, from additions and multiplications only, so that every device agrees."""
    t = np.asarray(t, np.float64)
    flushed = t < EXP_FLUSH
    t = np.where(flushed, 0.0, t)
    n = np.rint(t * LOG2_E)
    r = (t - n * LN2_HI) - n * LN2_LO
    p = np.full_like(r, EXP_COEFFICIENTS[0])
    for c in EXP_COEFFICIENTS[1:]:
        p = p * r + c
    return np.where(flushed, 0.0, np.ldexp(p, n.astype(np.int32)))


def round_to_one(weights: dict[int, int]) -> dict[int, int]:
    """Scale non-negative integer weights to sum to 2**30: round down, give the rest to the largest (lowest column)."""
    total = sum(weights.values())
    values = {j: (w << 30) // total for j, w in sorted(weights.items())}
    largest = max(values, key=lambda j: (values[j], -j))
    values[largest] += ONE - sum(values.values())
    return {j: v for j, v in values.items() if v > 0}


def _csr(rows: list[dict[int, int | float]], num_cols: int, dtype) -> Csr:
    row_ptr = np.cumsum([0] + [len(r) for r in rows], dtype=np.int64)
    col_idx = np.array([j for r in rows for j in sorted(r)], dtype=np.int32)
    values = np.array([r[j] for r in rows for j in sorted(r)], dtype=dtype)
    return Csr(row_ptr, col_idx, values, num_cols)


def _rows(csr: Csr) -> list[dict[int, int | float]]:
    row_ptr, col_idx, values = (np.asarray(a) for a in (csr.row_ptr, csr.col_idx, csr.values))
    return [
        dict(zip(col_idx[lo:hi].tolist(), values[lo:hi].tolist(), strict=True)) for lo, hi in pairwise(row_ptr.tolist())
    ]


def knn_graph(
    features: np.ndarray, k1: int, split: int = 0, farthest: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k1 nearest samples of each sample, itself included; ties to the lower index. With a split, those of the other
    side of it, none beyond `farthest`; -1 and infinity where there are fewer."""
    features = np.asarray(features).astype(np.float32)
    n = len(features)
    norm_sq = dot(features, features)
    neighbor_idx = np.full((n, k1), -1, np.int32)
    neighbor_dist = np.full((n, k1), np.inf, np.float32)
    for i in range(n):
        with np.errstate(over="ignore"):  # squared distances beyond float32 are +inf, and still ordered by index
            dist = np.maximum(norm_sq[i] + norm_sq - 2 * dot(features[i], features), 0.0).astype(np.float32)
        order = np.lexsort((np.arange(n), dist))
        if split:
            order = order[(order >= split) if i < split else (order < split)]
        if farthest is not None:
            order = order[dist[order] <= np.float32(farthest[i])]
        found = order[:k1]
        neighbor_idx[i, : len(found)], neighbor_dist[i, : len(found)] = found, dist[found]
    return neighbor_idx, neighbor_dist


def k_reciprocal_sets(
    neighbor_idx: np.ndarray, k1_half: int, begin: int = 0, end: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The expanded k-reciprocal sets of rows [begin, end): row_ptr and col_idx."""
    n = len(neighbor_idx)
    near = [set(r) for r in np.asarray(neighbor_idx).tolist()]
    near_half = [set(r) for r in np.asarray(neighbor_idx)[:, : k1_half + 1].tolist()]
    reciprocal = [{j for j in near[i] if i in near[j]} for i in range(n)]  # K
    half = [{j for j in near_half[i] if i in near_half[j]} for i in range(n)]  # H
    sets: list[dict[int, int | float]] = []
    for i in range(n)[begin:end]:
        expanded = set(reciprocal[i])  # S
        for q in reciprocal[i]:
            if 3 * len(half[q] & reciprocal[i]) > 2 * len(half[q]):
                expanded |= half[q]
        sets.append(dict.fromkeys(expanded, 1))
    rows = _csr(sets, n, np.int32)
    return rows.row_ptr, rows.col_idx


def sampled_dots(rows: np.ndarray, others: np.ndarray, row_ptr: np.ndarray, col_idx: np.ndarray) -> np.ndarray:
    """Dot product of row i and other j for each stored position (i, j); float64 [nnz]."""
    rows, others = (np.asarray(a).astype(np.float32) for a in (rows, others))
    pieces = [dot(rows[i], others[col_idx[lo:hi]]) for i, (lo, hi) in enumerate(pairwise(row_ptr.tolist()))]
    return np.concatenate([np.zeros(0), *pieces])


def k_reciprocal_weights(
    row_ptr: np.ndarray, col_idx: np.ndarray, dots: np.ndarray, num_cols: int | None = None
) -> Csr:
    """softmax of -(2 - 2 dot) over each row, in units of 2**-30, without what rounds to zero."""
    rows: list[dict[int, int | float]] = []
    for lo, hi in pairwise(row_ptr.tolist()):
        if lo == hi:
            rows.append({})
            continue
        t = 2 * dots[lo:hi] - 2
        with np.errstate(over="ignore"):  # differences beyond float64 are -inf, and have no weight
            weights = np.rint(exp(t - t.max()) * 2.0**32).astype(np.int64)
        rows.append(round_to_one(dict(zip(col_idx[lo:hi].tolist(), weights.tolist(), strict=True))))
    return _csr(rows, len(rows) if num_cols is None else num_cols, np.int32)


def k_reciprocal_encoding(features: np.ndarray, neighbor_idx: np.ndarray, k1_half: int) -> Csr:
    """softmax of -(2 - 2 f_i . f_j) over the expanded k-reciprocal set, in units of 2**-30."""
    sets = k_reciprocal_sets(neighbor_idx, k1_half)
    return k_reciprocal_weights(*sets, sampled_dots(features, features, *sets))


def invariant_expansion(
    encoding: Csr,
    neighbor_idx: np.ndarray,
    k2: int,
    camera_ids: np.ndarray | None = None,
    modality_ids: np.ndarray | None = None,
) -> Csr:
    """Nested means of the encodings of the k2 nearest samples: over samples, then cameras, then modalities."""
    n = encoding.num_rows
    if k2 == 1 and n == encoding.num_cols == len(neighbor_idx):
        return encoding
    camera = np.zeros(n, np.int64) if camera_ids is None else np.asarray(camera_ids)
    modality = np.zeros(n, np.int64) if modality_ids is None else np.asarray(modality_ids)
    encoded = _rows(encoding)
    rows: list[dict[int, int | float]] = []
    for neighbors in np.asarray(neighbor_idx)[:, :k2].tolist():
        members = [j for j in neighbors if encoded[j]]
        modalities = {modality[j] for j in members}
        total: dict[int, int] = {}
        for j in members:
            same_modality = [q for q in members if modality[q] == modality[j]]
            same_camera = [q for q in same_modality if camera[q] == camera[j]]
            share = len(modalities) * len({camera[q] for q in same_modality}) * len(same_camera)
            for column, value in encoded[j].items():
                total[column] = total.get(column, 0) + (2**32 // share) * value
        rows.append(round_to_one(total) if total else {})
    return _csr(rows, encoding.num_cols, np.int32)


def jaccard(overlap: int) -> np.float32:
    """J = 1 - s / (2 - s) for s = overlap / 2**30, as one correctly rounded division of integers."""
    return np.float32(float(2 * ONE - 2 * overlap) / float(2 * ONE - overlap))


def jaccard_distance(encoding: Csr, max_distance: float, partners: Csr | None = None) -> Csr:
    """J of every pair of rows that overlap and have J <= max_distance (compared in float32); with partners, numbered
    behind the rows of the encoding, of those with a row of either."""
    encoded = _rows(encoding)
    first = 0 if partners is None else len(encoded)
    encoded += [] if partners is None else _rows(partners)
    n = len(encoded)
    rows: list[dict[int, int | float]] = []
    for i in range(n):
        row: dict[int, int | float] = {}
        for j in range(first, n) if partners is None or i < first else range(first):
            overlap = sum(min(v, encoded[j][c]) for c, v in encoded[i].items() if c in encoded[j])
            if overlap > 0 and jaccard(overlap) <= np.float32(max_distance):
                row[j] = float(jaccard(overlap))
        rows.append(row)
    return _csr(rows, n, np.float32)


def dbscan(distance: Csr, eps: float, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """DBSCAN on stored distances; pairs that are not stored are farther than eps; a sample counts itself."""
    near = [
        {j for j, value in row.items() if np.float32(value) <= np.float32(eps)} | {i}
        for i, row in enumerate(_rows(distance))
    ]
    core_mask = np.array([len(s) >= min_samples for s in near], dtype=bool)
    labels = np.full(len(near), NOISE, np.int64)
    num_clusters = 0
    for i in range(len(near)):
        if not core_mask[i] or labels[i] != NOISE:
            continue
        stack = [i]
        labels[i] = num_clusters
        while stack:
            for j in near[stack.pop()]:
                if labels[j] == NOISE:
                    labels[j] = num_clusters
                    if core_mask[j]:
                        stack.append(j)
        num_clusters += 1
    return labels, core_mask


def round_features(features: np.ndarray, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """features * 2**exponent as float16, and the norm of what each row lost, rounded up."""
    scaled = np.ldexp(np.asarray(features).astype(np.float32).astype(np.float64), exponent)
    rounded = scaled.astype(np.float16)
    residual = scaled - rounded  # at most 24 bits, so its square is exact
    bound = np.sqrt(ordered_sum(residual * residual)) * (1 + 2.0**-40)
    norm = bound.astype(np.float32)
    return rounded, np.where(norm < bound, np.nextafter(norm, np.float32(np.inf)), norm)
