"""Cases and mutants of dbscan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from emulator_cases import Case, Mutant
from generators import edited, random_distance


def clustering(name: str, rows: tuple[np.ndarray, ...], eps: float = 0.5, min_samples: int = 4) -> Case:
    return Case(f"dbscan, {name}", "dbscan", (*map(torch.from_numpy, rows), eps, min_samples))


def stored(dense: np.ndarray, diagonal: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """row_ptr, col_idx and values of the entries below 1."""
    keep = dense < 1
    keep[np.diag_indices(len(dense))] = diagonal
    row_ptr = np.concatenate([[0], np.cumsum(keep.sum(1))])
    return row_ptr, np.nonzero(keep)[1].astype(np.int32), dense[keep]


def from_pairs(num_samples: int, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dense = np.ones((num_samples, num_samples), np.float32)
    np.fill_diagonal(dense, 0)
    dense[first, second] = dense[second, first] = 0.5
    return stored(dense)


def wide_border() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample 0 is near one sample of the first clique, and near so many of the second that its row exceeds a warp."""
    pairs = [(i, j) for first in (1, 46) for i in range(first, first + 45) for j in range(i) if j >= first]
    pairs += [(0, 1), *((0, j) for j in range(46, 81))]
    return from_pairs(91, *np.array(pairs).T)


def good_cases() -> Iterator[Case]:
    for n, bridges in ((1, 0), (2, 0), (7, 2), (65, 1), (130, 0.5), (130, 4)):
        rows = stored(random_distance(n, bridges, seed=n))
        for eps, min_samples in ((0.0, 1), (0.5, 1), (0.5, 4), (31 / 64, 5), (0.9, 2), (0.99, 1000)):
            yield clustering(f"{n} samples with {bridges} bridges, {eps}, {min_samples}", rows, eps, min_samples)
    yield clustering("no diagonal", stored(random_distance(65, 1), diagonal=False))
    n = 150
    place = np.random.default_rng(0).permutation(n)
    chain = np.arange(n - 1)
    yield clustering("a chain", from_pairs(n, chain, chain + 1), min_samples=2)
    yield clustering("a chain whose ends are borders", from_pairs(n, chain, chain + 1), min_samples=3)
    yield clustering("a shuffled chain", from_pairs(n, place[:-1], place[1:]), min_samples=2)
    bits = np.bitwise_xor.outer(np.arange(128), np.arange(128))
    yield clustering("a hypercube", from_pairs(128, *np.nonzero(np.bitwise_count(bits) == 1)), min_samples=8)
    hub = np.zeros(n - 1, np.int64)
    for min_samples in (2, 3):
        star = from_pairs(n, hub + 77, np.delete(np.arange(n), 77))
        yield clustering(f"a hub, {min_samples}", star, min_samples=min_samples)
    yield clustering("one cluster", stored(np.zeros((70, 70), np.float32)), eps=0.0)
    pairs = ((0, 1, 2, 0, 1, 0, 4, 5, 6, 4, 5, 4, 3, 3), (1, 2, 8, 2, 8, 8, 5, 6, 7, 6, 7, 7, 8, 4))
    yield clustering("a border between two clusters", from_pairs(9, *map(np.array, pairs)))
    yield clustering("a border that one lane sees two clusters from", wide_border(), min_samples=40)
    empty = np.zeros(0, np.int32), np.zeros(0, np.float32)
    for min_samples in (1, 2):
        yield clustering("nothing stored", (np.zeros(41, np.int64), *empty), min_samples=min_samples)
        yield clustering("no samples", (np.zeros(1, np.int64), *empty), min_samples=min_samples)
    signs = np.array([0, 1, 2]), np.array([1, 0], np.int32), np.array([0.0, -0.0], np.float32)
    yield clustering("zero and minus zero", signs, eps=0.0, min_samples=2)
    yield clustering("any positive number", (*signs[:2], np.array([7.5, 7.5], np.float32)), eps=7.5, min_samples=2)
    rows = tuple(map(torch.from_numpy, stored(random_distance(65, 1))))
    strided = (*(torch.stack([part, part], 1)[:, 0] for part in rows), 0.5, 4)
    yield Case("dbscan, strided", "dbscan", strided)


def bad_cases() -> Iterator[Case]:
    row_ptr, col_idx, values = stored(random_distance(130, 1, seed=6))
    for at in (0, len(values) // 2, len(values) - 1):
        for value in (-0.25, float("nan"), float("-inf"), -1e-45):
            yield clustering(f"{value} at entry {at}", (row_ptr, col_idx, edited(values, at, value)))
    diagonal = np.repeat(np.arange(130), np.diff(row_ptr)) == col_idx
    for at in np.flatnonzero(~diagonal)[[0, 100, -1]]:
        yield clustering(f"another value at entry {at}", (row_ptr, col_idx, edited(values, at, values[at] + 0.25)))
        alone = row_ptr - (np.arange(131) > np.searchsorted(row_ptr, at, side="right") - 1)
        yield clustering(f"nothing opposite of entry {at}", (alone, np.delete(col_idx, at), np.delete(values, at)))
    swapped = edited(edited(values, 1, -1.0), 2, float("nan"))
    yield clustering("negative before asymmetric", (row_ptr, col_idx, swapped))
    yield clustering("row_ptr first", (edited(row_ptr, 0, 1), col_idx, swapped))
    one_pair = np.array([0, 1, 1, 1]), np.array([2], np.int32), np.array([0.25], np.float32)
    yield clustering("one direction only", one_pair)
    yield clustering("eps", (row_ptr, col_idx, values), eps=-0.1)
    yield clustering("min_samples", (row_ptr, col_idx, values), min_samples=0)
    yield clustering("float64", (row_ptr, col_idx, values.astype(np.float64)))


CORE_ENTRIES = "t < end; t += kWarp) {\n      const int32_t j = col_idx[t];\n      const float"

MUTANTS = [
    # core samples, and the checks
    Mutant("stops_short_of_the_last_row", "row < rows; row +=", "row < rows - 1; row +="),
    Mutant("one_row_more", "row < rows; row +=", "row <= rows; row +=", "address"),
    Mutant("no_second_row", "row += static_cast<int64_t>(gridDim.x) * kWarpsPerBlock", "row = rows"),
    Mutant("warps_overlap", "row += static_cast<int64_t>(gridDim.x) * kWarpsPerBlock", "row += gridDim.x"),
    Mutant(
        "entries_of_a_short_row",
        CORE_ENTRIES,
        CORE_ENTRIES.replace("t < end", "t + 1 < end"),
    ),
    Mutant(
        "entries_past_the_end",
        CORE_ENTRIES,
        CORE_ENTRIES.replace("t < end", "t <= end"),
        "address",
    ),
    Mutant("nan_is_fine", "!(value >= 0.0f)", "value < 0.0f"),
    Mutant("negative_is_fine", "!(value >= 0.0f)", "!(value >= 0.0f || value < 0.0f)"),
    Mutant("zero_is_bad", "!(value >= 0.0f)", "!(value > 0.0f)"),
    Mutant("only_the_last_value_counts", "bad |= ", "bad = "),
    Mutant("symmetry_is_not_asked", "sum += balanced_hash(row, j, value);", ""),
    Mutant("eps_is_far", "near += value <= eps", "near += value < eps"),
    Mutant("counted_twice", " && j != row;", ";"),
    Mutant("not_counted", "int64_t{1} + __reduce", "int64_t{0} + __reduce"),
    Mutant("half_of_the_degree", "__reduce_add_sync(kAllLanes, near)", "__reduce_add_sync(0xffffu, near)"),
    Mutant("degree_of_one_lane", "__reduce_add_sync(kAllLanes, near)", "near"),
    Mutant("one_sample_more", "degree >= min_samples", "degree > min_samples"),
    Mutant("every_lane_decides", "    if (lane == 0) {\n      core[row]", "    {\n      core[row]", "thread"),
    Mutant("half_of_the_hashes", "__shfl_xor_sync(kAllLanes, sum, step)", "__shfl_xor_sync(0xffffu, sum, step)"),
    Mutant("fold_ends_early", "step > 0; step /= 2) sum", "step > 1; step /= 2) sum"),
    Mutant(
        "fold_starts_late",
        "int step = kWarp / 2; step > 0; step /= 2) sum",
        "int step = kWarp / 4; step > 0; step /= 2) sum",
    ),
    Mutant("balance_not_atomic", "atomicAdd(balance, sum)", "*balance += sum", "thread"),
    Mutant("balance_of_one_warp", "atomicAdd(balance, sum)", "atomicExch(balance, sum)"),
    Mutant("bad_values_not_atomic", "atomicAdd(bad_values, 1ull)", "*bad_values += 1", "thread"),
    # roots
    Mutant("parent_not_relaxed", "above = load_relaxed(parent + up)", "above = parent[up]", "thread"),
    Mutant("halving_not_atomic", "atomicMin(parent + i, above);", "parent[i] = above;", "thread"),
    Mutant("halving_too_far", "atomicMin(parent + i, above);", "atomicMin(parent + i, 0);"),
    Mutant("join_unbounded", "if (row >= rows || !core[row]) return;", "if (!core[row]) return;", "address"),
    Mutant("join_what_is_not_core", "if (row >= rows || !core[row]) return;", "if (row >= rows) return;"),
    Mutant(
        "join_to_what_is_not_core",
        "    if (!(values[t] <= eps) || !core[j]) continue;\n    int32_t a",
        "    if (!(values[t] <= eps)) continue;\n    int32_t a",
    ),
    Mutant(
        "join_what_is_far",
        "    if (!(values[t] <= eps) || !core[j]) continue;\n    int32_t a",
        "    if (!core[j]) continue;\n    int32_t a",
    ),
    Mutant(
        "join_the_first_lane",
        "t += kWarp) {\n    const int32_t j = col_idx[t];\n    if (j >= row)",
        "t = end) {\n    const int32_t j = col_idx[t];\n    if (j >= row)",
    ),
    Mutant(
        "hook_under_the_higher",
        "high = a < b ? b : a, low = a < b ? a : b",
        "high = a < b ? a : b, low = a < b ? b : a",
    ),
    Mutant("hook_not_atomic", "a = atomicCAS(parent + high, high, low);", "a = high; parent[high] = low;", "thread"),
    Mutant(
        "hook_what_is_no_root", "a = atomicCAS(parent + high, high, low);", "atomicExch(parent + high, low); a = high;"
    ),
    Mutant("lost_races_are_lost", "      if (a == high) break;\n", "      break;\n"),
    # flatten
    Mutant("flatten_unbounded", "  if (row >= rows) return;\n  const int32_t root", "  const int32_t root", "address"),
    Mutant(
        "flatten_misses_the_last",
        "  if (row >= rows) return;\n  const int32_t root",
        "  if (row >= rows - 1) return;\n  const int32_t root",
    ),
    Mutant("not_flattened", "  if (root != row) atomicMin(parent + row, root);\n", ""),
    Mutant("flatten_not_atomic", "if (root != row) atomicMin(parent + row, root);", "parent[row] = root;", "thread"),
    Mutant("what_is_not_core_is_first", "core[row] && root == row", "root == row"),
    Mutant("every_core_is_first", "core[row] && root == row", "core[row]"),
    # labels
    Mutant("label_unbounded", "  if (row >= rows) return;  // whole warps leave together\n", "", "address"),
    Mutant("label_of_the_row", "labels[row] = cluster_of[parent[row]]", "labels[row] = cluster_of[row]"),
    Mutant("core_labels_race", "if (lane == 0) labels[row] = cluster_of", "labels[row] = cluster_of", "thread"),
    Mutant(
        "border_of_what_is_not_core",
        "    if (!(values[t] <= eps) || !core[j]) continue;\n    const unsigned",
        "    if (!(values[t] <= eps)) continue;\n    const unsigned",
    ),
    Mutant(
        "border_of_what_is_far",
        "    if (!(values[t] <= eps) || !core[j]) continue;\n    const unsigned",
        "    if (!core[j]) continue;\n    const unsigned",
    ),
    Mutant("the_highest_cluster", "cluster < lowest ? cluster : lowest", "cluster"),
    Mutant("cluster_of_half_a_warp", "__reduce_min_sync(kAllLanes, lowest)", "__reduce_min_sync(0xffffu, lowest)"),
    Mutant("cluster_of_a_lane", "__reduce_min_sync(kAllLanes, lowest)", "lowest"),
    Mutant("border_labels_race", "if (lane == 0) labels[row] = lowest", "labels[row] = lowest", "thread"),
    Mutant("noise_is_a_cluster", "lowest == kNoCluster ? kNoise : ", ""),
]

# No test can notice these, and here is why.
EQUIVALENT = {
    Mutant("paths_not_halved", "    atomicMin(parent + i, above);\n", ""): "only slower",
    Mutant(
        "every_lane_adds", "if (lane == 0 && sum != 0) atomicAdd", "if (sum != 0) atomicAdd"
    ): "32 times the sum; it is zero modulo 2^64 if the sum is, or if its low 59 bits are, one case in 2^59",
    Mutant("the_upper_triangle_too", "    if (j >= row) break;  // columns ascend\n", ""): "the pairs are joined twice",
}
