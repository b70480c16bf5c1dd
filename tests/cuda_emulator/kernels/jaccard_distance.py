"""jaccard_distance: every path of the join, and inputs where ties, bounds and capacities decide.

In the emulator a table has 64 places, shared memory sorts 8 keys, and the chunks have 10 rows, then 40 rows or 400
values: see the tuned sizes in csrc/cuda/jaccard_distance_cuda.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from emulator_cases import Case, Mutant
from generators import csr_from_dense, damaged_encodings, gallery, random_encoding_rows, some_rows

import dmic
from dmic import Csr
from dmic.csr import ONE


def tensors(rows: Csr) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(part) for part in (rows.row_ptr, rows.col_idx, rows.values))


def join(name: str, rows: Csr, max_distance: float, *rest: object) -> Case:
    """`rest`: max_pairs and what follows."""
    return Case(f"jaccard_distance, {name}", "jaccard_distance", (*tensors(rows), max_distance, *rest))


def split(name: str, rows: Csr, max_distance: float, at: int, max_pairs: int = -1) -> Case:
    """The rows before `at`, and those from there on as their partners."""
    before, partners = some_rows(rows, slice(0, at)), some_rows(rows, slice(at, rows.num_rows))
    name = f"{name}, split at {at} of {rows.num_rows}"
    return join(name, before, max_distance, max_pairs, *tensors(partners), rows.num_cols)


def encoded(num_samples: int, k1: int, k2: int, noise: float = 0.7) -> Csr:
    """The encoding of a gallery, as users have it."""
    data = gallery(num_samples, 16, seed=num_samples, noise=noise)
    neighbor_idx = dmic.knn_graph(data.features, k1)[0]
    encoding = dmic.k_reciprocal_encoding(data.features, neighbor_idx, k1 // 2)
    return dmic.invariant_expansion(encoding, neighbor_idx, k2, data.camera_ids, data.modality_ids)


def ladder(steps: int) -> Csr:
    """Rows of two columns each, and the same in reverse order: the overlap of rows i and j falls by 1 with i - j."""
    dense = np.zeros((2 * steps, 2 * steps), np.int32)
    for row in range(steps):
        dense[row, :2] = dense[2 * steps - 1 - row, :2] = ONE // 2 + row, ONE // 2 - row
    return csr_from_dense(dense)


def halves(rows: int, values: int) -> Csr:
    """Column 0 holds half of every row, `values` columns share the other half evenly: all weights and bounds tie."""
    random = np.random.default_rng(rows)
    dense = np.zeros((rows, rows), np.int32)
    dense[:, 0] = ONE // 2
    for row in dense:
        row[1 + random.choice(3 * values, values, replace=False)] = ONE // 2 // values
    return csr_from_dense(dense)


def next_row() -> Csr:
    """Rows 0 and 2 are near; row 2 has one more column, with which row 1 begins."""
    weights = np.zeros((11, 11))
    weights[0, :10] = 0.55, *[0.05] * 9
    weights[1, 10] = 1
    weights[2] = 0.5, *[0.05] * 10
    return whole(weights)


def whole(weights: np.ndarray) -> Csr:
    """Weights of rows that sum to 1, or of empty rows, as an encoding."""
    fixed = np.floor(weights * ONE).astype(np.int32)
    rest = weights.any(1) * ONE - fixed.sum(1)
    fixed[np.arange(len(fixed)), fixed.argmax(1)] += rest
    return csr_from_dense(fixed)


def with_empty_rows(encoding: Csr, rows: slice | list[int]) -> Csr:
    dense = encoding.to_dense().copy()
    dense[rows] = 0
    return csr_from_dense(dense)


def radii(encoding: Csr, quantile: float) -> tuple[float, float]:
    """A distance that occurs, and the float32 number just below it."""
    occurring = np.unique(dmic.jaccard_distance(encoding, 1.0).values)
    distance = occurring[int(quantile * (len(occurring) - 1))]
    return float(distance), float(np.nextafter(distance, np.float32(0)))


def good_cases() -> Iterator[Case]:
    gallery_rows = encoded(66, 16, 6)
    for radius in (1.0, *radii(gallery_rows, 0.3)):
        yield join(f"a gallery within {radius}", gallery_rows, radius)
    noisy_rows = encoded(50, 24, 12, noise=3.0)
    yield join("a noisy gallery", noisy_rows, radii(noisy_rows, 0.6)[0])
    crowded = csr_from_dense(random_encoding_rows(72, 72, 40, seed=1))
    for radius in (1.0, radii(crowded, 0.05)[0]):
        yield join(f"crowded columns within {radius}", crowded, radius)
    # row 20 has candidates 21, 55 and 76, one of which goes round the table
    yield join("halves", halves(80, 4), radii(halves(80, 4), 0.3)[0])
    for radius in radii(ladder(6), 0.4):
        yield join(f"a ladder within {radius!r}", ladder(6), radius)
    equal = csr_from_dense(ONE * np.repeat(np.eye(70, dtype=np.int32)[-1:], 70, axis=0))
    yield join("equal rows and room for all pairs", equal, 0.0, 70 * 69 // 2)
    yield join("no pair and room for none", csr_from_dense(ONE * np.eye(9, dtype=np.int32)), 1.0, 0)
    few_rows = encoded(30, 8, 3)
    for rows in ([0], [*range(12), 29], [*range(5, 25)]):
        yield join(f"empty rows {rows}", with_empty_rows(few_rows, rows), 0.8)
    yield join("a column that the next row begins with", next_row(), 0.2)
    last = csr_from_dense((ONE - 1) * np.eye(6, dtype=np.int32) + np.eye(6, dtype=np.int32)[5])
    yield join("one unit in the last column", last, 1.0)
    for rows in (0, 1, 7):
        empty = Csr(np.zeros(rows + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), rows)
        yield join(f"{rows} empty rows alone", empty, 0.5)
    yield join("one row", csr_from_dense(np.array([[ONE]], np.int32)), 0.5)
    parts = [torch.as_tensor(part) for part in (few_rows.row_ptr, few_rows.col_idx, few_rows.values)]
    strided = Csr(*(torch.stack([part, part], 1)[:, 0] for part in parts), 30)
    yield join("strided", strided, 0.6)
    yield from splits()


def splits() -> Iterator[Case]:
    """Pairs with partners, and rows with more or fewer columns than there are rows."""
    gallery_rows = encoded(66, 16, 6)
    for at in (0, 1, 30, 65, 66):
        yield split("a gallery", gallery_rows, radii(gallery_rows, 0.3)[0], at)
    yield split("all pairs of a gallery", gallery_rows, 1.0, 40)
    crowded = csr_from_dense(random_encoding_rows(72, 100, 50, seed=1))
    for radius in (1.0, radii(crowded, 0.05)[0]):
        yield split(f"crowded columns within {radius}", crowded, radius, 4)
    yield split("halves", halves(80, 4), radii(halves(80, 4), 0.3)[0], 21)
    for radius in radii(ladder(6), 0.4):
        yield split(f"a ladder within {radius!r}", ladder(6), radius, 7)
    equal = csr_from_dense(ONE * np.repeat(np.eye(70, dtype=np.int32)[-1:], 70, axis=0))
    yield split("equal rows and room for all pairs", equal, 0.0, 33, 33 * 37)
    yield split("no pair and room for none", csr_from_dense(ONE * np.eye(9, dtype=np.int32)), 1.0, 4, 0)
    for rows in ([*range(5)], [*range(20, 30)], [*range(20)]):  # the first part or the second, or some of a part
        for at in (5, 20):
            yield split(f"empty rows {rows}", with_empty_rows(encoded(30, 8, 3), rows), 0.8, at)
    part = some_rows(gallery_rows, slice(20, 50))
    for at in (0, 12):
        yield split("rows of a gallery", part, 0.9, at)
        yield split("more rows than columns", csr_from_dense(random_encoding_rows(50, 6, 3)), 0.6, at)
    yield split("no rows", some_rows(part, slice(0, 0)), 0.5, 0)


def bad_cases() -> Iterator[Case]:
    equal = csr_from_dense(ONE * np.repeat(np.eye(30, dtype=np.int32)[:1], 30, axis=0))
    for max_pairs in (30 * 29 // 2 - 1, 250, 1, 0):
        yield join(f"more than {max_pairs} pairs", equal, 0.25, max_pairs)
    for radius in (-0.1, 1.5, float("nan")):
        yield join(f"a radius of {radius}", equal, radius)
    for number, (damaged, _) in enumerate(damaged_encodings(encoded(20, 8, 3))):
        yield join(f"damage {number}", damaged, 0.5)
    for number, (damaged, _) in enumerate(damaged_encodings(encoded(20, 8, 3))):
        yield join(f"partners of damage {number}", encoded(20, 8, 3), 0.5, -1, *tensors(damaged), 20)
    yield join("partners without values", equal, 0.5, -1, *tensors(equal)[:2], None)
    yield split("more pairs than allowed", equal, 0.25, 10, 199)
    some = some_rows(encoded(20, 8, 3), slice(5, 20))
    for num_cols in (-2, 0, 19, 2**31):
        yield join(f"{num_cols} columns", some, 0.5, -1, None, None, None, num_cols)


MUTANTS = [
    # histogram and inverted lists
    Mutant("count_past_the_end", "if (t < num_indices) atomicAdd", "if (t <= num_indices) atomicAdd", "address"),
    Mutant("count_not_atomic", "atomicAdd(&counts[indices[t]], 1)", "counts[indices[t]] += 1", "thread"),
    Mutant("cursors_not_atomic", "return atomicAdd(cursor, 1ull);", "return (*cursor)++;", "thread"),
    Mutant(
        "lists_of_one_row_more",
        "if (row >= rows) return;\n  const int32_t number",
        "if (row > rows) return;\n  const int32_t number",
        "address",
    ),
    Mutant(
        "lists_of_the_last_row_missing",
        "if (row >= rows) return;\n  const int32_t number",
        "if (row >= rows - 1) return;\n  const int32_t number",
    ),
    Mutant("partners_numbered_from_zero", "static_cast<int32_t>(first_row + row);", "static_cast<int32_t>(row);"),
    # sorting
    Mutant(
        "sort_beyond_shared_memory", "if (length > shared_capacity) {", "if (length > shared_capacity + 1) {", "address"
    ),
    Mutant(
        "long_segment_one_short",
        "block_sort(segment, static_cast<uint32_t>(length))",
        "block_sort(segment, static_cast<uint32_t>(length - 1))",
    ),
    # the plan
    Mutant("plan_one_row_more", "if (at >= rows) return;", "if (at > rows) return;", "address"),
    Mutant(
        "rows_pair_with_themselves", "packed(static_cast<int32_t>(row) + 1, 0)", "packed(static_cast<int32_t>(row), 0)"
    ),
    Mutant("work_of_half_a_warp", "__shfl_xor_sync(kAllLanes, sum, step)", "__shfl_xor_sync(0x0000ffffu, sum, step)"),
    Mutant(
        "work_of_even_lanes",
        "for (int step = kWarp / 2; step > 0; step /= 2) sum",
        "for (int step = kWarp / 2; step > 1; step /= 2) sum",
    ),
    # the shared table
    Mutant(
        "keys_of_the_last_row_stay", "rows[slot] = kFreeKey;", "rows[slot] = rows[slot] < 1000 ? rows[slot] : kFreeKey;"
    ),
    Mutant("overlaps_not_cleared", "      overlaps[slot] = 0;\n      rows[slot]", "      rows[slot]"),
    Mutant(
        "claim_not_atomic",
        "found = atomicCAS(&rows[slot], kFreeKey, row);",
        "found = rows[slot], rows[slot] = row;",
        "thread",
    ),
    Mutant(
        "known_probes_leave_the_table",
        "const uint32_t slot = (home(row) + probe) & (capacity - 1);\n      if",
        "const uint32_t slot = home(row) + probe;\n      if",
    ),
    Mutant(
        "shared_overlap_not_atomic",
        "      atomicAdd(&overlaps[slot], amount);\n      return is_new",
        "      overlaps[slot] += amount;\n      return is_new",
        "thread",
    ),
    Mutant(
        "known_overlap_not_atomic",
        "      atomicAdd(&overlaps[slot], amount);\n      return;",
        "      overlaps[slot] += amount;\n      return;",
        "thread",
    ),
    Mutant("a_full_table_loses_rows", "    return kFull;\n", "    return kKnown;\n"),
    # the dense table
    Mutant(
        "every_entry_is_a_candidate",
        "atomicAdd(&overlaps[row], amount) == 0 ? row : kKnown",
        "atomicAdd(&overlaps[row], amount) >= 0 ? row : kKnown",
        "address",
    ),
    Mutant("dropped_rows_revive", "if (load_relaxed(&overlaps[row]) > 0) atomicAdd", "atomicAdd"),
    Mutant(
        "dense_overlap_not_atomic", "> 0) atomicAdd(&overlaps[row], amount);", "> 0) overlaps[row] += amount;", "thread"
    ),
    Mutant("blocks_share_a_slot", "const int64_t mine = blockIdx.x * all_rows;", "const int64_t mine = 0 * all_rows;"),
    # appending
    Mutant("append_sees_half_a_warp", "__ballot_sync(kAllLanes, wanted)", "__ballot_sync(0x0000ffffu, wanted)"),
    Mutant("append_mask", "__shfl_sync(kAllLanes, first, 0)", "__shfl_sync(0x0000ffffu, first, 0)"),
    Mutant(
        "append_not_atomic",
        "first = atomicAdd(num_candidates, __popc(lanes));",
        "first = *num_candidates, *num_candidates += __popc(lanes);",
        "thread",
    ),
    # the scan
    Mutant("sums_mask", "__shfl_up_sync(kAllLanes, value, step)", "__shfl_up_sync(0x0000ffffu, value, step)"),
    Mutant(
        "sums_off_by_a_lane", "if (lane_index() >= step) value += below;", "if (lane_index() > step) value += below;"
    ),
    Mutant(
        "a_column_of_the_next_row", "if (scan.column + lane < scan.columns)", "if (scan.column + lane <= scan.columns)"
    ),
    Mutant("a_tie_is_no_candidate", "(mass - mine.value) >= join.threshold", "(mass - mine.value) > join.threshold"),
    Mutant(
        "last_tile_missing",
        "(static_cast<uint32_t>(mine.count) + kWarp - 1) / kWarp",
        "static_cast<uint32_t>(mine.count) / kWarp",
    ),
    Mutant(
        "tiles_mask", "__shfl_sync(kAllLanes, tiles_end, kWarp - 1)", "__shfl_sync(0x7fffffffu, tiles_end, kWarp - 1)"
    ),
    Mutant("tile_of_the_column_before", "tiles_end <= tile)", "tiles_end < tile)"),
    Mutant(
        "columns_mask", "__ballot_sync(kAllLanes, tiles_end <= tile)", "__ballot_sync(0x0000ffffu, tiles_end <= tile)"
    ),
    Mutant(
        "first_tile_mask",
        "__shfl_sync(kAllLanes, tiles_end - tiles, at)",
        "__shfl_sync(0x0000ffffu, tiles_end - tiles, at)",
    ),
    Mutant(
        "one_entry_past_the_list",
        "const bool inside = offset < part.count;",
        "const bool inside = offset <= part.count;",
    ),
    Mutant("fullness_not_noticed", "    if (slot == kFull) atomicExch(&state.full, 1);\n", ""),
    Mutant(
        "mass_of_columns_not_scanned",
        "__shfl_sync(kAllLanes, mass, num_taken - 1)",
        "__shfl_sync(kAllLanes, mass, kWarp - 1)",
    ),
    Mutant("mass_mask", "__shfl_sync(kAllLanes, mass, num_taken - 1)", "__shfl_sync(0x0000ffffu, mass, num_taken - 1)"),
    Mutant("taken_mask", "__popc(__ballot_sync(kAllLanes, taken))", "__popc(__ballot_sync(0x0000ffffu, taken))"),
    # dropping
    Mutant(
        "drop_without_waiting_for_scans",
        "  __syncthreads();\n  if (threadIdx.x == 0) state.num_candidates = 0;",
        "  if (threadIdx.x == 0) state.num_candidates = 0;",
        "thread",
    ),
    Mutant(
        "drop_moves_before_reading",
        "    __syncthreads();  // what is kept moves to places that were read by now\n",
        "",
        "thread",
    ),
    Mutant(
        "drop_returns_early", "  __syncthreads();\n  return state.num_candidates;", "  return state.num_candidates;"
    ),
    Mutant("ties_are_dropped", "keep = table.overlaps[slot] >= overlap;", "keep = table.overlaps[slot] > overlap;"),
    Mutant("dropped_overlaps_stay", "      if (!keep) table.overlaps[slot] = 0;\n", ""),
    # whole rows
    Mutant("lookup_past_the_row", "if (at < end && join.col_idx[at] == column)", "if (join.col_idx[at] == column)"),
    Mutant(
        "overlap_of_half_a_warp", "__reduce_add_sync(kAllLanes, overlap)", "__reduce_add_sync(0x0000ffffu, overlap)"
    ),
    Mutant(
        "every_lane_writes_the_overlap",
        "if (lane_index() == 0) table.overlaps[slot] = overlap;",
        "table.overlaps[slot] = overlap;",
        "thread",
    ),
    # a row
    Mutant(
        "look_before_all_have_scanned",
        "  __syncthreads();\n  if (Table::kCanFill && state.full) return false;",
        "  if (Table::kCanFill && state.full) return false;",
        "thread",
    ),
    Mutant("a_full_table_is_used", "  if (Table::kCanFill && state.full) return false;\n", ""),
    Mutant(
        "drop_one_too_many",
        "drop_candidates_below(join.threshold - scan.mass_left,",
        "drop_candidates_below(join.threshold - scan.mass_left + 1,",
    ),
    Mutant("partial_overlaps_are_final", "if (scan.column < scan.columns) {", "if (scan.column < 0) {"),
    Mutant(
        "whole_overlaps_not_compared", "drop_candidates_below(join.threshold, table", "drop_candidates_below(1, table"
    ),
    Mutant(
        "pairs_at_the_last_place",
        "num_candidates);\n  __syncthreads();\n",
        "num_candidates);\n",
    ),
    Mutant(
        "pairs_not_atomic",
        "state.first_pair = atomicAdd(&join.counters[kJaccardPairs], num_candidates);",
        "{ state.first_pair = join.counters[kJaccardPairs]; join.counters[kJaccardPairs] += num_candidates; }",
        "thread",
    ),
    Mutant(
        "pairs_beyond_the_buffer", "if (pair < join.pair_capacity) {", "if (pair <= join.pair_capacity) {", "address"
    ),
    Mutant(
        "overlaps_left_for_the_next_row", "    table.overlaps[slot] = 0;\n  }\n  return true;", "  }\n  return true;"
    ),
    # the blocks
    Mutant(
        "next_row_before_all_are_done", "    __syncthreads();  // nobody looks at the last row any more\n", "", "thread"
    ),
    Mutant(
        "row_before_the_table_is_clear", "    table.clear();\n    __syncthreads();\n", "    table.clear();\n", "thread"
    ),
    Mutant(
        "candidates_of_the_last_row", "      state.num_candidates = 0;\n      state.full = 0;", "      state.full = 0;"
    ),
    Mutant("one_row_too_few", "if (item >= items) return;", "if (item >= items - 1) return;"),
    Mutant(
        "every_thread_queues_the_row",
        "if (!join_row(join, i, table, state) && threadIdx.x == 0)",
        "if (!join_row(join, i, table, state))",
    ),
    # whole rows
    Mutant(
        "whole_rows_by_the_number_of_the_row",
        "(table.row_of(slot) - join.first_partner)",
        "table.row_of(slot)",
        "address",
    ),
    Mutant("columns_of_the_joined_rows", "join.partner_col_idx[other]", "join.col_idx[other]"),
    Mutant("values_of_the_joined_rows", "join.partner_values[other]", "join.values[other]"),
    # the mirror
    Mutant("diagonal_lengths_past_the_end", "if (row < rows) lengths[row]", "if (row <= rows) lengths[row]", "address"),
    Mutant(
        "lengths_of_a_diagonal_in_a_split",
        "row_ptr && row_ptr[row] < row_ptr[row + 1];",
        "!row_ptr || row_ptr[row] < row_ptr[row + 1];",
    ),
    Mutant("a_diagonal_in_a_split", "if (row_ptr && row_ptr[row]", "if (row_ptr[row]"),
]

# No test can notice these, and here is why.
EQUIVALENT = {
    Mutant(
        "full_for_ever", "      state.num_candidates = 0;\n      state.full = 0;", "      state.num_candidates = 0;"
    ): "rows are given up without need, and joined with the dense table",
    Mutant(
        "a_full_table_is_scanned_to_the_end",
        "    if (__any_sync(kAllLanes, load_relaxed(&state.full))) return false;\n",
        "",
    ): "saves time: the row is given up in any case",
    Mutant(
        "never_the_short_way", "num_candidates * join.verify_cost <= scan.tiles_left", "false"
    ): "decides only which of two exact ways is taken",
    Mutant(
        "always_the_short_way", "num_candidates * join.verify_cost <= scan.tiles_left", "true"
    ): "decides only which of two exact ways is taken",
    Mutant(
        "rows_without_partners_are_joined",
        "    if (join.tiles[i - join.first_row] == 0) continue;  // no later row has a column of this one\n",
        "",
    ): "finds none",
}
