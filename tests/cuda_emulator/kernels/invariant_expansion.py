"""Cases and mutants of invariant_expansion: tables in shared memory and beyond it, and every bit of the CPU's rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from emulator_cases import Case, Mutant
from generators import (
    csr_from_dense,
    damaged_encodings,
    edited,
    gallery,
    random_encoding_rows,
    random_lists,
    some_rows,
)

from dmic import Csr
from dmic.csr import ONE

HUGE = 2**63 - 1


def case(name: str, encoding: Csr, neighbor_idx, k2: int, camera_ids=None, modality_ids=None, *num_cols: int) -> Case:
    arrays = [encoding.row_ptr, encoding.col_idx, encoding.values, neighbor_idx, camera_ids, modality_ids]
    row_ptr, col_idx, values, neighbor_idx, *ids = (None if a is None else torch.as_tensor(a) for a in arrays)
    arguments = (row_ptr, col_idx, values, neighbor_idx, k2, *ids, *num_cols)
    return Case(f"invariant_expansion, {name}", "invariant_expansion", arguments)


def sparse(n: int, nnz: int, seed: int = 0, empty: float = 0.0) -> Csr:
    dense = random_encoding_rows(n, n, nnz, seed)
    dense[np.random.default_rng(seed).random(n) < empty] = 0
    return csr_from_dense(dense)


def mixed_lengths(n: int) -> Csr:
    """Rows of one value, of a few, and of almost all columns."""
    rng = np.random.default_rng(9)
    short, long = random_encoding_rows(n, n, 2), random_encoding_rows(n, n, n)
    dense = np.where(rng.random((n, 1)) < 0.1, long, short)
    dense[rng.random(n) < 0.3] = 0
    one = rng.random(n) < 0.2
    dense[one] = ONE * np.eye(n, dtype=np.int32)[rng.integers(n, size=one.sum())]
    return csr_from_dense(dense)


def good_cases() -> Iterator[Case]:
    rows = 39
    data = gallery(rows, 12)
    lists = torch.ops.dmic.knn_graph(torch.from_numpy(data.features), 12)[0]
    encoding = Csr(*torch.ops.dmic.k_reciprocal_encoding(torch.from_numpy(data.features), lists, 6), rows)
    cameras, modalities = data.camera_ids, data.modality_ids
    yield case("plain", encoding, lists, 6)
    yield case("cameras", encoding, lists, 6, cameras)
    yield case("modalities", encoding, lists, 6, None, modalities)
    yield case("cameras and modalities", encoding, lists, 12, cameras, modalities)
    yield case("cameras numbered in each modality", encoding, lists, 12, cameras % 2, modalities)
    renamed = np.array([7, 0, 10**12, HUGE, 2**62, HUGE - 1])[cameras], np.array([HUGE - 2**32, HUGE])[modalities]
    yield case("ids with gaps", encoding, lists, 9, *renamed)
    yield case("one camera", encoding, lists, 9, np.full(rows, 2**40))
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 9, 43), rng.integers(0, 3, 43)
    yield case("lists of two words", sparse(43, 3, empty=0.3), random_lists(43, 41), 40, *ids)
    yield case("everyone is a member", sparse(35, 6), random_lists(35, 35), 35, rng.integers(0, 30, 35))
    yield case("members without a row", sparse(60, 4, empty=0.6), random_lists(60, 3), 3, rng.integers(0, 3, 60))
    yield case("nobody has a row", sparse(10, 4, empty=1.0), random_lists(10, 3), 3)
    yield case("short rows and long ones", mixed_lengths(70), random_lists(70, 5), 4, rng.integers(0, 2, 70))
    n = 37
    columns = rng.permutation(n).astype(np.int32)
    alone = Csr(np.arange(n + 1), columns, np.full(n, ONE, np.int32), n)
    for k2 in (5, 6, 7, 24, 25):  # as many columns as tables of 8 and of 32 slots may hold, one less and one more
        yield case(f"{k2} columns", alone, random_lists(n, k2), k2)
    dense = np.zeros((3, 3), np.int32)
    dense[:, 0] = ONE
    dense[0, :2] = ONE - 1, 1
    yield case("a share that rounds to zero", csr_from_dense(dense), np.tile(np.arange(3, dtype=np.int32), (3, 1)), 3)
    repeated = edited(lists.numpy(), (slice(None), 11), lists.numpy()[:, 10])
    yield case("twice in a row, but not among the members", encoding, repeated, 11)
    strided = Csr(*(torch.stack([a, a], 1)[:, 0] for a in (encoding.row_ptr, encoding.col_idx, encoding.values)), rows)
    yield case("strided", strided, lists.T.contiguous().T, 6, torch.from_numpy(cameras)[:, None].expand(-1, 2)[:, 1])
    yield case("k2 of one", encoding, lists, 1, cameras, modalities)
    yield case("one sample", sparse(1, 1), np.zeros((1, 1), np.int32), 1)
    empty = Csr(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), 0)
    for k2 in (1, 3):
        yield case(f"no samples, k2 of {k2}", empty, np.zeros((0, 5), np.int32), k2, np.zeros(0, np.int64))
    yield from parts()


def parts() -> Iterator[Case]:
    """Some rows of a gallery's encoding, and lists of other numbers of samples among them."""
    rng = np.random.default_rng(4)
    wide = csr_from_dense(random_encoding_rows(21, 90, 7, seed=2))
    ids = rng.integers(0, 9, 21), rng.integers(0, 3, 21)
    for num_lists in (3, 21, 50):
        for k2 in (1, 6):
            lists = random_lists(21, 7, 2, num_lists)
            yield case(f"{num_lists} lists of 21 rows, k2 of {k2}", wide, lists, k2, *ids, 90)
    square = sparse(21, 5)
    for k2 in (1, 4):
        yield case(f"fewer lists, k2 of {k2}", square, random_lists(21, 6, 3, 8), k2)
        yield case(f"told the number of columns, k2 of {k2}", square, random_lists(21, 6, 3), k2, None, None, 21)
    rows = some_rows(mixed_lengths(70), slice(10, 55))
    yield case("short rows and long ones of a part", rows, random_lists(45, 5, 5, 33), 4, None, None, 70)
    # 7 members with up to 5 values in the same 5 columns: a table of 8 slots is enough
    yield case("few columns", csr_from_dense(random_encoding_rows(12, 5, 5)), random_lists(12, 8), 7, None, None, 5)
    for rows in (square, some_rows(square, slice(0, 0))):
        for k2 in (1, 3):
            lists = np.zeros((0, 5), np.int32)
            yield case(f"no lists of {rows.num_rows} rows, k2 of {k2}", rows, lists, k2, None, None, 21)


def bad_cases() -> Iterator[Case]:
    encoding, lists = sparse(32, 5), random_lists(32, 8)
    cameras = np.arange(32) % 3
    for damaged, parts in damaged_encodings(encoding):
        if damaged.num_cols == 32 and len(np.shape(damaged.row_ptr)) == 1:
            yield case(f"an encoding with wrong {parts}", damaged, lists, 3)
    for value in (-1, 32):
        yield case(f"index {value} after the members", encoding, edited(lists, (30, 7), value), 3)
    twice = edited(lists, (17, 2), lists[17, 0])
    yield case("twice in a row", encoding, twice, 3)
    for k2 in (1, 3):
        yield case(f"a negative camera, k2 of {k2}", encoding, lists, k2, edited(cameras, 31, -2), cameras)
        yield case(f"a negative modality, k2 of {k2}", encoding, lists, k2, cameras, edited(cameras, 0, -(2**63)))
    negative = edited(cameras, [8, 9], [-1, -5])
    yield case("negative ids and members twice", encoding, twice, 3, negative, negative)
    yield case("the same and an index out of range", encoding, edited(twice, (31, 7), 32), 3, negative, negative)
    yield case("k2 of zero", encoding, lists, 0)
    yield case("too few ids", encoding, lists, 3, cameras[:31])
    yield case("ids of lists", encoding, lists[:20], 3, cameras[:20])
    for num_cols in (-2, 0, int(encoding.col_idx.max()), 2**31):
        yield case(f"{num_cols} columns", encoding, lists, 3, None, None, num_cols)
    few = some_rows(encoding, slice(0, 9))
    yield case("a row that a part does not have", few, edited(random_lists(9, 4), (8, 3), 9), 3, None, None, 32)
    more = random_lists(9, 4, 0, 30)
    yield case("the same in the last of more lists", few, edited(more, (29, 3), 31), 1, None, None, 32)
    yield case("members twice in the last of more lists", few, edited(more, (29, 2), more[29, 0]), 3, None, None, 32)


MUTANTS = [
    # weights of the members
    Mutant("rows_unbounded", "  if (row >= last_row) return;  // whole warps leave together\n", "", "address"),
    Mutant("members_past_the_list", "list[min(t, k2 - 1)]", "list[t]", "address"),
    Mutant("empty_rows_count", "      if (length(other) == 0) continue;\n", ""),
    Mutant("nobody_is_first", "if (s >= t) continue;", "if (s > t) continue;"),
    Mutant("all_of_a_modality_are_alike", "alike += same_camera(j, other)", "alike += same_modality(j, other)"),
    Mutant(
        "modalities_of_half_of_the_lanes",
        "__ballot_sync(kAllLanes, first_of_modality",
        "__ballot_sync(0xffffu, first_of_modality",
    ),
    Mutant(
        "cameras_of_half_of_the_lanes",
        "__ballot_sync(kAllLanes, first_of_camera",
        "__ballot_sync(0xffffu, first_of_camera",
    ),
    Mutant("modalities_of_the_last_word", "modalities += __popc", "modalities = __popc"),
    Mutant("every_lane_writes_the_mask", "if (lane == 0) opens_camera", "opens_camera", "thread"),
    Mutant("weights_past_the_end", "if (t < k2) weights[t]", "weights[t]", "address"),
    Mutant("mask_read_before_it_is_there", "  __syncwarp();\n", "", "thread"),
    Mutant("weights_of_what_does_not_count", "    if (weights[t] == 0) continue;\n", ""),
    Mutant("cameras_of_all_modalities", "& 1) && same_modality(j, list[s]);", "& 1);"),
    Mutant("members_are_cameras", "(opens_camera[s / kWarp] >> (s % kWarp) & 1) &&", "length(list[s]) > 0 &&"),
    Mutant("total_of_half_of_the_lanes", "__shfl_xor_sync(kAllLanes, total", "__shfl_xor_sync(0xffffu, total"),
    Mutant("bound_of_half_of_the_lanes", "__shfl_xor_sync(kAllLanes, columns", "__shfl_xor_sync(0xffffu, columns"),
    Mutant("total_starts_late", "int step = kWarp / 2;", "int step = kWarp / 4;"),
    Mutant("every_lane_writes_the_total", "  if (lane != 0) return;\n", "", "thread"),
    # the table
    Mutant("sums_not_cleared", "    sums[slot] = 0;\n", ""),
    Mutant("no_way_around_the_end", "return (slot + 1) & (slots - 1);", "return slot + 1;", "address"),
    Mutant(
        "whoever_took_the_slot",
        "if (held == kNoColumn) held = atomicCAS",
        "if (held == kNoColumn) atomicCAS",
    ),
    Mutant(
        "slots_taken_not_atomically",
        "held = atomicCAS(columns + slot, kNoColumn, column)",
        "columns[slot] = column",
        "thread",
    ),
    Mutant("slots_read_not_relaxed", "load_relaxed(columns + slot)", "columns[slot]", "thread"),
    Mutant("sums_not_atomic", "atomicAdd(sums + slot, value)", "sums[slot] += value", "thread"),
    # merging
    Mutant("blocks_share_a_table", "tables + blockIdx.x * table_capacity * kSlotBytes", "tables", "thread"),
    Mutant("nobody_takes_what_just_fits", "table.slots <= shared_slots", "table.slots < shared_slots"),
    Mutant(
        "too_long_for_shared_memory", "    if ((table.slots <= shared_slots) != kInShared) continue;\n", "", "address"
    ),
    Mutant("no_list_in_shared_memory", "shared_slots * kSlotBytes)", "shared_slots * 12)", "address"),
    Mutant("length_of_an_empty_row", "lengths[row] = 0;", "{}"),
    Mutant(
        "every_thread_writes_an_empty_row", "if (!kFill && threadIdx.x == 0) lengths", "if (!kFill) lengths", "thread"
    ),
    Mutant("rest_of_all_rows_so_far", "      sum = 0;\n", ""),
    Mutant("largest_of_all_rows_so_far", "      largest = 0;\n", ""),
    Mutant("added_before_all_is_clear", "    __syncthreads();\n\n    for (int64_t t", "    for (int64_t t", "thread"),
    Mutant("every_warp_adds_all", "t += blockDim.x / kWarp", "t += 1"),
    Mutant("one_entry_more", "p < in.row_ptr[j + 1]", "p <= in.row_ptr[j + 1]"),
    Mutant("divided_before_all_is_added", "    __syncthreads();\n\n    const double", "    const double", "thread"),
    Mutant("zeros_are_stored", " || divide_share(table.sums[slot], total, reciprocal) == 0) continue", ") continue"),
    Mutant("columns_not_counted_atomically", "atomicAdd(&num_columns, 1u)", "num_columns++", "thread"),
    Mutant("counted_before_all_are_there", "    __syncthreads();\n    if (!kFill)", "    if (!kFill)", "thread"),
    Mutant(
        "every_thread_writes_the_length",
        "if (threadIdx.x == 0) lengths[row] = static",
        "lengths[row] = static",
        "thread",
    ),
    Mutant("columns_not_sorted", "    block_sort(found, length);\n", "    __syncthreads();\n"),
    Mutant("rest_by_thread", "    summary.fold();\n", ""),
    Mutant("every_lane_adds_its_warp", "if (lane_index() == 0) {", "{"),
    Mutant("sum_not_atomic", "atomicAdd(&sum, summary.sum)", "sum += summary.sum", "thread"),
    Mutant("largest_of_the_last_warp", "atomicMax(&largest, summary.largest)", "atomicExch(&largest, summary.largest)"),
    Mutant(
        "rest_before_all_warps_are_there",
        "    __syncthreads();\n    if (threadIdx.x == 0) {\n      summary.sum",
        "    if (threadIdx.x == 0) {\n      summary.sum",
        "thread",
    ),
    Mutant(
        "rest_added_again_and_again", "if (threadIdx.x == 0) {\n      summary.sum", "{\n      summary.sum", "thread"
    ),
]

# No test can notice these, and here is why.
EQUIVALENT = {
    Mutant(
        "lanes_past_the_list_count", "counts = t < k2 && length(j) > 0", "counts = length(j) > 0"
    ): "they repeat the last member, which comes before them, and write nothing",
    Mutant("bound_beyond_all_columns", "min(columns, num_cols)", "columns"): "the table is larger than it need be",
    Mutant(
        "members_without_weight_are_added", "      if (numerator == 0) continue;\n", ""
    ): "they have no entries, or add zeros that are dropped",
    Mutant(
        "hash_by_the_low_bits", ">> shift);", ">> 1) & (slots - 1);"
    ): "any place will do, only the number of probes differs",
}
