"""Cases and mutants of knn_graph: every bit of the CPU's neighbours, and rows that are redone where they must be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from emulator_cases import Case, Mutant
from generators import gallery, grid_features

from dmic import reference


@dataclass
class Search(Case):
    """A case whose third result, the number of rows redone, is the emulated kernel's own: `redone` says how many."""

    redone: str = "none"

    def run(self, ops) -> tuple[torch.Tensor, ...] | str:
        result = super().run(ops)
        if isinstance(result, str):
            return result
        *neighbors, num_redone = result
        rows = len(self.arguments[0])
        if ops is not torch.ops.dmic:
            redone = {0: "none", rows: "all"}.get(int(num_redone), "some") if rows else "none"
            assert redone == self.redone, f"{self.name}: {int(num_redone)} of {rows} rows were redone"
        return tuple(neighbors)


def case(name: str, features, k1: int, block_rows: int = 0, redone: str = "none") -> Search:
    features = torch.as_tensor(np.ascontiguousarray(features, dtype=np.float32))
    return Search(f"knn_graph, {name}", "knn_graph", (features, k1, block_rows), redone=redone)


def tight_clusters() -> np.ndarray:
    """float16 cannot tell the samples of a cluster apart, and the lists are shorter than the clusters."""
    rng = np.random.default_rng(5)
    centers = rng.standard_normal((4, 9))
    return centers[rng.integers(4, size=130)] + 1e-4 * rng.standard_normal((130, 9))


def exact_halves() -> np.ndarray:
    """Nothing is lost in float16: only the float32 sums of the products err, by more than the distances differ."""
    rng = np.random.default_rng(6)
    base = rng.integers(1024, 2048, (2, 512))[np.arange(90) % 2]
    flips = rng.random((90, 512)) < rng.uniform(0, 0.1, (90, 1))
    return (base + flips * rng.integers(-3, 4, (90, 512))) / 2048


def between(
    name: str, features, split: int, k1: int, farthest=None, block_rows: int = 0, redone: str = "none"
) -> Search:
    features = torch.as_tensor(np.ascontiguousarray(features, dtype=np.float32))
    limits = None if farthest is None else torch.as_tensor(farthest, dtype=torch.float32)
    return Search(f"knn_graph, {name}", "knn_graph", (features, k1, block_rows, None, split, limits), redone=redone)


def good_cases_of_two_sides() -> Iterator[Case]:
    yield between("two sides", gallery(140, 24).features, 60, 10)
    yield between("few against many", gallery(420, 8).features, 120, 10)
    yield between("many against few", gallery(420, 8).features, 300, 10)
    yield between("two sides of large tiles", gallery(300, 24).features[:, :17], 130, 6, block_rows=256)
    yield between("one against all", gallery(90, 9).features, 89, 4)
    yield between("a side shorter than the lists", gallery(60, 9).features, 12, 20)
    yield between("an empty side", gallery(20, 9).features, 20, 3, np.ones(20))
    grid = grid_features(150, 3)
    _, nearest = reference.knn_graph(grid, 15, 70)
    last = nearest[:, 9]
    yield between("ties", grid, 70, 12)
    yield between("ties at the threshold", grid, 70, 15, last)
    yield between("what is just beyond", grid, 70, 15, np.nextafter(last, np.float32(-1)).clip(0))
    yield between("duplicates only", grid, 70, 15, np.zeros(150))
    of_some = np.where(np.arange(150) % 2, last, np.where(np.arange(150) % 3, np.inf, np.finfo(np.float32).max))
    yield between("limits of some", grid, 70, 15, of_some)
    nearing = (np.arange(400, 0, -1) ** 2)[:, None] * np.ones((1, 3))
    _, nearest = reference.knn_graph(nearing, 7, 397)
    yield between("ever nearer", nearing, 397, 7, redone="some")
    yield between("ever nearer, from what is near", nearing, 397, 7, nearest[:, -1])
    yield between("two sides that are redone", gallery(70, 6).features, 31, 50, redone="all")
    yield between("limits that are redone", grid_features(70, 3), 31, 50, np.arange(70) % 9, redone="all")
    yield between("distances beyond float32", gallery(70, 6).features * 1e30, 31, 50, redone="all")
    yield between("one beyond float32", [[3e38, -3e38], [1e-45, 3e38], [-3e38, 1e-45]], 1, 3, [np.inf, 3.4e38, 0])


def good_cases() -> Iterator[Case]:
    yield from good_cases_of_two_sides()
    yield case("a gallery", gallery(140, 24).features, 10)
    yield case("columns of no multiple of eight", gallery(70, 8).features[:, :7], 3)
    yield case("more steps than stages", gallery(70, 200).features, 5)
    yield case("ties", grid_features(100, 5), 7)
    yield case("lists that fit no shared memory", gallery(50, 6).features, 50, redone="all")
    yield case("lists that fit just so", gallery(50, 6).features, 45)
    yield case("clusters too tight for float16", tight_clusters(), 6)
    yield case("sums too coarse in float32", exact_halves(), 4)
    magnitudes = np.logspace(-6, 0, 80)[:, None]
    yield case("norms from 1e-6 to 1", gallery(80, 16).features * magnitudes, 5)
    yield case("large tiles", gallery(300, 24).features[:, :17], 6, block_rows=256)
    yield case("one sample", gallery(1, 3).features, 1)
    yield case("no sample", np.zeros((0, 3)), 2)
    yield case("no columns", np.zeros((3, 0)), 2)
    yield case("zeros", np.zeros((5, 4)), 5)
    yield case("the range of float32", [[3e38, -3e38], [1e-45, 3e38], [-3e38, 1e-45]], 3)
    yield from slow_good_cases()


def slow_good_cases() -> Iterator[Case]:
    """Many rows are redone."""
    duplicates = gallery(96, 9).features
    duplicates[16:] = duplicates[16]  # more than a list holds, and the last row is one of them
    yield case("duplicates", duplicates, 3, redone="some")
    duplicates = gallery(200, 9).features
    duplicates[np.arange(200) % 90 >= 16] = 10 * duplicates[16]
    yield between("duplicates on two sides", duplicates, 90, 3, redone="some")


def bad_cases() -> Iterator[Case]:
    features = gallery(20, 9).features
    for value in (np.nan, np.inf, -np.inf):
        bad = features.copy()
        bad[17, 8] = value
        yield case(f"{value}", bad, 3)
    yield case("no neighbors", features, 0)
    yield case("too many neighbors", features, 21)
    yield case("negative blocks", features, 3, -1)
    yield case("one axis", features[0], 1)
    yield between("a side of less than none", features, -1, 3)
    yield between("a side of more than all", features, 21, 3)
    yield between("limits of one side", features, 0, 3, np.ones(20))
    yield between("too few limits", features, 5, 3, np.ones(19))
    for value in (np.nan, -1.0, -np.inf):
        yield between(f"a limit of {value}", features, 5, 3, np.where(np.arange(20) == 11, value, 1))
    yield Case("knn_graph, float64", "knn_graph", (torch.zeros(3, 3, dtype=torch.float64), 1))


MUTANTS = [
    # norms
    Mutant(
        "norms_unbounded",
        "if (row >= rows) return;  // whole warps leave together\n  const float* x =",
        "const float* x =",
        "address",
    ),
    Mutant("largest_not_atomic", "atomicMax(largest, bits);", "*largest = max(*largest, bits);", "thread"),
    Mutant("the_smallest_norm", "atomicMax(largest, bits);", "atomicMin(largest, bits);"),
    # bounds
    Mutant("start_unbounded", "  if (row >= rows) return;\n  const double norm =", "  const double norm =", "address"),
    Mutant("nothing_is_lost_by_rounding", "residual = residual_norm[row];", "residual = 0.0;"),
    Mutant("sums_are_exact", "(1.25 * static_cast<double>(d) + 32) * 0x1p-23", "0.0 * static_cast<double>(d)"),
    Mutant("lists_start_full", "if (blocks > 0) {", "if (blocks >= 0) {"),
    Mutant("starts_from_nowhere", "reach[row] = farthest ? farthest[row] : HUGE_VALF;", "reach[row] = HUGE_VALF;"),
    Mutant("one_candidate_too_few", "- block_begin(block, blocks, rows));", "- block_begin(block, blocks, rows) - 1);"),
    # tiles
    Mutant("blocks_unbounded", "  if (row_block >= rows.blocks) return;\n", "", "address"),
    Mutant("half_turn_twice", "  if (one_side && 2 * shift == rows.blocks && row_block >= shift) return;", ""),
    Mutant("half_turn_of_two_sides", "one_side && 2 * shift == rows.blocks", "2 * shift == rows.blocks"),
    Mutant("half_turn_of_none", "one_side && 2 * shift == rows.blocks", "false"),
    Mutant("first_tile_of_two_sides_in_place", "if (one_side && shift == 0)", "if (shift == 0)"),
    Mutant("columns_in_a_row", "row_block * cols.blocks / rows.blocks + shift", "row_block + shift"),
    Mutant("rows_of_the_longer_side", "fewer = one.blocks <= other.blocks ? one : other", "fewer = one"),
    Mutant("columns_of_the_second_side", "more = one.blocks <= other.blocks ? other : one", "more = other"),
    Mutant("half_turn_never", "row_block >= shift) return;", "row_block >= 0) return;"),
    Mutant("second_half_missing", "+ blockIdx.x % 2 * T::kRows", "+ 0 * T::kRows"),
    Mutant("columns_unbounded", "inside = step * kDepth + unit * 8 < d;", "inside = true;"),
    Mutant("samples_unbounded", "inside && below < (of_rows ? rows_left : cols_left)", "inside", "address"),
    Mutant("copies_not_swizzled", "(unit ^ (copy_row & 7))", "unit"),
    Mutant("rows_not_swizzled", "((2 * k + lane / 16) ^ (r & 7))", "(2 * k + lane / 16)"),
    Mutant("columns_not_swizzled", "((2 * k + lane / 8 % 2) ^ (r & 7))", "(2 * k + lane / 8 % 2)"),
    Mutant("matrices_swapped", "warp_row + m * 16 + lane % 16", "warp_row + m * 16 + (lane + 8) % 16"),
    Mutant("wait_for_too_few_copies", "wait_for_copies<kStages - 2>", "wait_for_copies<kStages - 1>"),
    Mutant("steps_not_together", "    __syncthreads();  // the step is here", "    // the step is here"),
    Mutant(
        "steps_race",
        "    __syncthreads();  // the step is here",
        "    __syncwarp();  // the step is here",
        "thread",
    ),
    Mutant("copies_not_closed", "    commit_copies();\n    const uint4* stage", "    const uint4* stage"),
    Mutant("copies_one_step_off", "copy_step(step + kStages - 1);", "copy_step(step + kStages - 2);"),
    # the filter
    Mutant("append_not_atomic", "atomicAdd(count + sample, 1)", "count[sample]++", "thread"),
    Mutant("lists_unbounded", "if (position < capacity) lists", "lists"),
    Mutant("one_beyond_the_list", "position < capacity", "position <= capacity", "address"),
    Mutant("first_tile_has_too_many_rows", "if (i < row_end && j < col_end)", "if (j < col_end)", "address"),
    Mutant("padding_is_compared", "if (sample < end) {", "if (sample >= 0 || sample < end) {", "address"),
    Mutant("slack_subtracted_for_rows", "for_row = highest >=", "for_row = 2 * score - highest >="),
    Mutant("slack_subtracted_for_columns", "for_col = highest >=", "for_col = 2 * score - highest >="),
    Mutant("rows_only", "for_col = highest >=", "for_col = false && highest >="),
    Mutant("columns_only", "for_row = highest >=", "for_row = false && highest >="),
    # compaction
    Mutant(
        "compact_unbounded",
        "if (row >= rows) return;  // whole warps leave together\n  double* uppers",
        "double* uppers",
        "address",
    ),
    Mutant("found_unbounded", "count[row] < capacity ? count[row] : capacity", "count[row]", "address"),
    Mutant("counts_of_nothing_race", "  if (found == 0) return;", "", "thread"),
    Mutant("losses_forgotten", "overflowed[row] = 1;", "overflowed[row] = 0;"),
    Mutant("one_neighbor_too_few", "rank_of(uppers, found, t) == k1 - 1", "rank_of(uppers, found, t) == k1 - 2"),
    Mutant(
        "uppers_race",
        "    __syncwarp();\n    for (int t = lane; t < found; t += kWarp)\n      if (rank_of(uppers",
        "    for (int t = lane; t < found; t += kWarp)\n      if (rank_of(uppers",
        "thread",
    ),
    Mutant("half_of_the_lanes", "__shfl_xor_sync(kAllLanes, within, step)", "__shfl_xor_sync(0xffffu, within, step)"),
    Mutant("fold_ends_early", "step > 0; step /= 2) within", "step > 1; step /= 2) within"),
    Mutant("keepers_of_half_a_warp", "__ballot_sync(kAllLanes, keep)", "__ballot_sync(0xffffu, keep)"),
    Mutant("compaction_race", "    __syncwarp();  // entries are read", "    // entries are read", "thread"),
    Mutant("keepers_shifted", "__popc(keepers & ((1u << lane) - 1))", "__popc(keepers & (1u << lane))"),
    Mutant(
        "slack_on_the_wrong_side",
        "middle(entry) - slack(entry) <= threshold",
        "middle(entry) + slack(entry) <= threshold",
    ),
    # the end
    Mutant(
        "finish_unbounded",
        "if (row >= rows) return;  // whole warps leave together\n  uint64_t* keys",
        "uint64_t* keys",
        "address",
    ),
    Mutant("lost_candidates_are_fine", "bool certified = !overflowed[row];", "bool certified = true;"),
    Mutant("short_lists_are_wrong", "found < k1 && !(end <= reach[row])", "found < k1"),
    Mutant("nothing_is_too_far", "end = farthest ? farthest[row] : HUGE_VALF", "end = HUGE_VALF"),
    Mutant("equal_indices_are_too_far", "value <= end ? static_cast", "value < end ? static_cast"),
    Mutant("equal_distances_are_too_far", "value <= end ? value", "value < end ? value"),
    Mutant("what_is_cut_must_be_proved", "fminf(value, end) <= reach[row]", "value <= reach[row]"),
    Mutant("short_lists_end_with_the_first", "k1 + rank] = -1;", "k1 + rank] = 0;"),
    Mutant("short_lists_end_near", "k1 + rank] = HUGE_VALF;", "k1 + rank] = 0.0f;"),
    Mutant("short_lists_unbounded", "rank < k1; rank += kWarp", "rank <= k1; rank += kWarp", "address"),
    Mutant("last_candidates_missing", "first < found; first += kAtOnce", "first + kAtOnce <= found; first += kAtOnce"),
    Mutant("keys_race", "    __syncwarp();\n    const float end", "    const float end", "thread"),
    Mutant("one_neighbor_too_many", "if (rank >= k1) continue;", "if (rank > k1) continue;", "address"),
    Mutant("half_of_the_warp_votes", "__any_sync(kAllLanes, beyond)", "__any_sync(0xffffu, beyond)"),
    Mutant("redo_not_atomic", "redo[atomicAdd(redo_count, 1ull)]", "redo[(*redo_count)++]", "thread"),
    Mutant("never_redone", "if (!certified && lane == 0)", "if (false)"),
    # redo
    Mutant("redo_unbounded", "  if (first >= num_redo) return;", "", "address"),
    Mutant("redo_writes_unbounded", "lane_index() == r && first + r < num_redo", "lane_index() == r", "address"),
    Mutant("redo_reads_unbounded", "redo[first + r < num_redo ? first + r : first]", "redo[first + r]", "address"),
    Mutant("redo_takes_its_own_side", "split == 0 || (i < split) != (j < split)", "true"),
    Mutant("redo_takes_none_of_one_side", "split == 0 || (i < split)", "(i < split)"),
    Mutant("redo_asks_the_last_row", "any_compared |= are_compared", "any_compared = are_compared"),
    Mutant("redo_has_no_limit", "(!farthest || distance <= farthest[i])", "true"),
    Mutant("redo_drops_equals", "distance <= farthest[i]", "distance < farthest[i]"),
    Mutant("infinity_is_none", "kNone = 0x7fffffffu", "kNone = 0x7f800000u"),
    Mutant("none_is_a_neighbor", "none ? -1 : static_cast", "false ? -1 : static_cast"),
    Mutant("none_is_a_distance", "none ? HUGE_VALF : value_of", "false ? HUGE_VALF : value_of"),
    Mutant(
        "histogram_cleared_late",
        "histogram[bin] = 0;\n    __syncthreads();",
        "histogram[bin] = 0;",
        "thread",
    ),
    Mutant(
        "histogram_not_atomic",
        "atomicAdd(&histogram[bits >> shift & (kBins - 1)], 1)",
        "++histogram[bits >> shift & (kBins - 1)]",
        "thread",
    ),
    Mutant("histogram_read_early", "    __syncthreads();\n    if (thread == 0) {", "    if (thread == 0) {", "thread"),
    Mutant("digit_read_early", "    __syncthreads();\n    last |=", "    last |=", "thread"),
    Mutant("digit_too_large", "before + histogram[digit] < wanted", "before + histogram[digit] <= wanted"),
    Mutant("nearer_not_atomic", "keys[atomicAdd(&num_nearer, 1)]", "keys[num_nearer++]", "thread"),
    Mutant("equals_of_half_a_warp", "__ballot_sync(kAllLanes, bits == last)", "__ballot_sync(0xffffu, bits == last)"),
    Mutant("warps_counted_late", "__popc(equal);\n    __syncthreads();", "__popc(equal);", "thread"),
    Mutant(
        "warps_counted_early",
        "keys[k1 - wanted + position] = pack(bits, j);\n    __syncthreads();",
        "keys[k1 - wanted + position] = pack(bits, j);",
        "thread",
    ),
    Mutant("equals_unbounded", "bits == last && position < wanted", "bits == last", "address"),
    Mutant("one_equal_too_few", "position < wanted", "position < wanted - 1"),
    Mutant(
        "columns_of_a_row_unbounded", "j < rows ? float_bits(row[j]) : 0xffffffffu", "float_bits(row[j])", "address"
    ),
]

EQUIVALENT = {
    Mutant(
        "first_tile_has_too_many_columns", "if (i < row_end && j < col_end)", "if (i < row_end)", "address"
    ): "the list has room for a whole tile, and what is past its count is never read",
    Mutant(
        "empty_tiles_run", "  if (row_begin >= row_end) return;\n", ""
    ): "every row of the tile is beyond the end of its block: nothing is copied and nothing is kept",
    Mutant(
        "the_certificate_is_not_asked", "beyond |= !(fminf(value, end) <= reach[row]);", ""
    ): "the bounds of the filter hold, so a row that lost nothing always passes: this guards against a bug in them",
    Mutant(
        "short_lists_are_fine", "found < k1 && !(end <= reach[row])", "false"
    ): "a list that dropped more than farthest asks for has kept k1 nearer ones: this guards against a bug in that",
    Mutant(
        "redo_computes_all", "if (any_compared) warp_dots", "warp_dots"
    ): "what no row is compared with is not in its list whatever the product",
    Mutant(
        "equality_is_beyond", "for_row = highest >=", "for_row = highest >"
    ): "the bounds leave room for eight roundings more than there are",
}
