"""Cases and mutants of the checks that several ops make, by these ops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import torch
from emulator_cases import Case, Mutant
from generators import csr_from_dense, edited, random_encoding_rows, random_lists

ROWS = 41


def encode(name: str, features: np.ndarray, lists: np.ndarray) -> Case:
    """k_reciprocal_encoding checks features, and that all of a list is distinct."""
    arguments = torch.from_numpy(features), torch.from_numpy(lists), min(2, max(lists.shape[1] - 1, 0))
    return Case(f"k_reciprocal_encoding, {name}", "k_reciprocal_encoding", arguments)


def expand(name: str, rows: tuple[np.ndarray, ...], lists: np.ndarray, k2: int, num_cols: int = -1) -> Case:
    """invariant_expansion checks an encoding, and that the first k2 of a list are distinct."""
    arguments = (*map(torch.from_numpy, rows), torch.from_numpy(lists), k2, None, None, num_cols)
    return Case(f"invariant_expansion, {name}", "invariant_expansion", arguments)


def overlap(name: str, rows: tuple[np.ndarray, ...]) -> Case:
    """jaccard_distance checks an encoding."""
    return Case(f"jaccard_distance, {name}", "jaccard_distance", (*map(torch.from_numpy, rows), 0.5))


def sets(name: str, lists: np.ndarray, begin: int, end: int) -> Case:
    """k_reciprocal_sets checks that all of a list is distinct, in rows [begin, end)."""
    arguments = torch.from_numpy(lists), 2, begin, end
    return Case(f"k_reciprocal_sets, {name}, rows {begin} to {end}", "k_reciprocal_sets", arguments)


def multiply(name: str, columns: list[int], num_others: int) -> Case:
    """sampled_dots checks columns that are others than the rows: here one row of all columns."""
    row_ptr, col_idx = torch.tensor([0, len(columns)]), torch.tensor(columns, dtype=torch.int32)
    arguments = torch.ones(1, 2), torch.ones(num_others, 2), row_ptr, col_idx
    return Case(f"sampled_dots, {name}", "sampled_dots", arguments)


def encoding(num_rows: int = ROWS, nnz: int = 36) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows shorter and longer than a warp, and two empty ones."""
    dense = random_encoding_rows(num_rows, num_rows, nnz)
    dense[[0, num_rows // 2]] = 0
    rows = csr_from_dense(dense)
    return rows.row_ptr, rows.col_idx, rows.values


def part(num_rows: int, num_cols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some rows of a gallery, the last of which has a value in every column."""
    dense = random_encoding_rows(num_rows, num_cols, 5)
    dense[-1] = (1 << 30) // num_cols
    dense[-1, 0] += (1 << 30) % num_cols
    rows = csr_from_dense(dense)
    return rows.row_ptr, rows.col_idx, rows.values


def good_cases() -> Iterator[Case]:
    random = np.random.default_rng(0)
    for rows, d in ((1, 1), (9, 5), (ROWS, 16), (20, 513)):
        features = random.uniform(-1, 1, (rows, d)).astype(np.float32)
        yield encode(f"{rows} x {d}", features, random_lists(rows, min(rows, 5)))
    extreme = np.resize(np.array([1e15, -1e15, 0, -0.0, 1e-45, -1e-45], np.float32), (9, 6))
    yield encode("small and large numbers", extreme, random_lists(9, 5))
    for rows, k in ((ROWS, 31), (ROWS, 32), (ROWS, 33), (ROWS, ROWS), (8, 8), (9, 1)):
        yield encode(f"lists of {k}", np.ones((rows, 2), np.float32), random_lists(rows, k))
    yield encode("no rows", np.zeros((0, 4), np.float32), np.zeros((0, 3), np.int32))
    lists = random_lists(ROWS, 40)
    lists[:, 34:] = lists[:, :6]
    yield expand("twice beyond k2", encoding(), lists, 34)
    for rows, num_cols, num_lists in ((7, 50, 3), (50, 7, 70), (50, 50, 40)):
        lists = random_lists(rows, 7, 0, num_lists)
        assert lists.max() == rows - 1, "the last row must be in a list"
        yield expand(f"{num_lists} lists of {rows} rows", part(rows, num_cols), lists, 7, num_cols)
    yield overlap("an encoding", encoding())
    yield overlap("one row", tuple(map(np.array, ([0, 1], np.zeros(1, np.int32), np.array([1 << 30], np.int32)))))
    empty = np.zeros(0, np.int32), np.zeros(0, np.int32)
    yield overlap("only empty rows", (np.zeros(ROWS + 1, np.int64), *empty))
    yield overlap("no samples", (np.zeros(1, np.int64), *empty))
    long = csr_from_dense(random_encoding_rows(300, 300, 4))  # more rows than a block has threads
    yield overlap("more rows", (long.row_ptr, long.col_idx, long.values))
    lists = random_lists(ROWS, 9)
    yield sets("twice just outside", edited(lists, ([7, 20], 8), lists[[7, 20], 1]), 8, 20)
    yield multiply("more columns than rows", [0, 1, 5], 6)


def bad_features() -> Iterator[Case]:
    random = np.random.default_rng(1)
    values = cycle((np.nan, np.inf, -np.inf, np.nan))
    for rows, d in ((9, 5), (40, 513), (ROWS, 15), (ROWS, 16)):
        features, lists = random.uniform(-1, 1, (rows, d)).astype(np.float32), random_lists(rows, 5)
        places = ((0, 0), (rows // 2, 1), (rows // 3, 2), (5, 3), (rows - 1, d - 1))
        for (row, column), value in zip(places, values, strict=False):
            yield encode(f"{value} at {row}, {column} of {d}", edited(features, (row, column), value), lists)
    for column in range(4):
        yield encode(f"-inf at {column}", edited(features, (7, column), -np.inf), lists)
        yield encode(f"nan at {column}", edited(features, (7, column), np.nan), lists)
    features = edited(edited(features, (7, 3), np.inf), (7, 9), np.nan)
    yield encode("several", edited(features, 30, np.nan), lists)
    yield encode("features before lists", features, edited(lists, 0, -1))


def bad_lists() -> Iterator[Case]:
    features, rows = np.ones((ROWS, 2), np.float32), encoding()
    values = cycle((-1, ROWS, 2**31 - 1, -1, ROWS))
    for k in (5, ROWS):
        lists, last = random_lists(ROWS, k), ROWS - 1
        for (row, column), value in zip(((0, 0), (8, k // 2), (last, k - 1), (9, 1), (9, 0)), values, strict=False):
            yield encode(f"{value} at {row}, {column} of {k}", features, edited(lists, (row, column), value))
        for row, first, second in ((0, 0, 1), (last, 0, k - 1), (8, k - 2, k - 1), (30, 1, k // 2)):
            repeated = edited(lists, (row, second), lists[row, first])
            yield encode(f"{first} again at {second} of row {row} of {k}", features, repeated)
        yield expand(f"the last of {k - 1}", rows, edited(lists, (3, k - 2), lists[3, 0]), k - 1)
    for num_rows, num_lists in ((7, 30), (30, 7)):
        lists = edited(random_lists(num_rows, 5, 0, num_lists), (num_lists - 1, 4), num_rows)
        yield expand(f"a row too many in {num_lists} lists", part(num_rows, 50), lists, 3, 50)
    yield encode("range before repetitions", features, edited(repeated, (last, 4), ROWS))
    lists = random_lists(ROWS, 9)
    for row, begin, end in ((8, 8, 20), (19, 8, 20), (last, last, ROWS), (0, 0, 1)):
        yield sets(f"twice in row {row}", edited(lists, (row, 8), lists[row, 1]), begin, end)
    yield sets("range in rows that are not wanted", edited(lists, (2, 4), ROWS), 8, 20)
    one = edited(edited(random_lists(9, 4), (2, 0), 5), (2, 3), 5)
    yield encode("several repetitions", np.ones((9, 2), np.float32), edited(one, 7, 3))


def cluster(name: str, row_ptr: np.ndarray, nnz: int) -> Case:
    """dbscan checks the structure alone: here rows of the columns 0, 1, ..."""
    rows = torch.from_numpy(row_ptr)
    columns = torch.arange(nnz, dtype=torch.int32)
    return Case(f"dbscan, {name}", "dbscan", (rows, columns, torch.zeros(nnz), 0.5, 2))


def bad_row_ptrs() -> Iterator[Case]:
    for rows in (9, 300):
        again = edited(np.ones(rows + 1, np.int64), [0, rows - 1], 0)  # the only entry is in two rows
        yield cluster(f"row_ptr decreases at row {rows - 2}", again, 1)
    one_row = np.full(10, 5, np.int64)
    yield cluster("row_ptr starts at 1", edited(one_row, 0, 1), 5)
    yield cluster("row_ptr starts at -1", edited(one_row, 0, -1), 5)
    yield cluster("row_ptr ends at 4", edited(one_row, slice(0, None), 4) * (np.arange(10) > 0), 5)
    yield cluster("row_ptr ends at 6", edited(one_row, slice(0, None), 6) * (np.arange(10) > 0), 5)
    yield cluster("row_ptr decreases at row 0", edited(edited(one_row, 0, 0), 1, -1), 5)
    yield cluster("row_ptr decreases at the last row", edited(edited(one_row, 0, 0), 8, 6), 5)
    yield cluster("row_ptr decreases again and again", np.array([0, 3, 1, 4, 2, 5, 0, 5]), 5)
    yield cluster("row_ptr decreases far", edited(edited(one_row, 0, 0), 5, -(10**9)), 5)
    yield cluster("row_ptr far off", edited(edited(one_row, 0, 0), 5, 10**9), 5)
    yield cluster("no samples but an end", np.ones(1, np.int64), 0)


def bad_rows() -> Iterator[Case]:
    row_ptr, col_idx, values = encoding()
    nnz, last = len(values), ROWS - 1
    long = row_ptr[8]
    for change in (values[long + 1], values[long + 1] + 5):  # to zero or less, with the same sum
        moved = edited(edited(values, long, values[long] + change), long + 1, values[long + 1] - change)
        yield overlap(f"{change} moved", (row_ptr, col_idx, moved))
    columns, weights, changes = cycle((-1, ROWS, 2**31 - 1, -1, ROWS)), cycle((0, -5)), cycle((1, -1, 1 << 20))
    for row in (1, 8, last):
        first, end = row_ptr[row], row_ptr[row + 1]
        for at in {first, end - 1, min(first + 32, end - 1)}:
            column, weight, change = next(columns), next(weights), next(changes)
            yield overlap(f"column {column} at {at}", (row_ptr, edited(col_idx, at, column), values))
            yield overlap(f"{weight} at {at}", (row_ptr, col_idx, edited(values, at, weight)))
            yield overlap(f"{change} too much at {at}", (row_ptr, col_idx, edited(values, at, values[at] + change)))
            if at > first:
                again = edited(col_idx, at, col_idx[at - 1])
                yield overlap(f"column again at {at}", (row_ptr, again, values))
                yield overlap(f"columns swapped at {at}", (row_ptr, edited(again, at - 1, col_idx[at]), values))
    for num_rows, num_cols in ((7, 50), (50, 7)):
        lists = random_lists(num_rows, 5)
        yield expand(f"a column too many in {num_rows} rows", part(num_rows, num_cols), lists, 3, num_cols - 1)
    unbalanced = edited(edited(values, 0, values[0] + 1), 5, -3)
    yield overlap("values before sums", (row_ptr, col_idx, unbalanced))
    yield overlap("structure before values", (row_ptr, edited(col_idx, nnz - 1, ROWS), unbalanced))
    yield multiply("the column after the last", [0, 1, 5], 5)
    five = np.full(5, 1 << 30, np.int32)
    yield overlap("2^30 modulo 2^32", (np.array([0, 5, 5, 5, 5, 5]), np.arange(5, dtype=np.int32), five))


def bad_cases() -> Iterator[Case]:
    yield from bad_features()
    yield from bad_lists()
    yield from bad_row_ptrs()
    yield from bad_rows()


REPORT = "  if (bad) atomicOr(wrong, 1ull);\n}\n\n"
AFTER = {  # what follows the report of each kernel
    "finite": "// Finds out whether any index",
    "neighbors": "// Finds out whether row_ptr",
    "row_ptr": "// Finds out whether the columns",
    "rows": "}  // namespace",
}

MUTANTS = [
    *(
        Mutant(
            f"{kernel}_not_atomic",
            REPORT + text,
            REPORT.replace("atomicOr(wrong, 1ull)", "*wrong |= 1") + text,
            "thread",
        )
        for kernel, text in AFTER.items()
    ),
    *(Mutant(f"{kernel}_never_reported", REPORT + text, "}\n\n" + text) for kernel, text in AFTER.items()),
    *(
        Mutant(f"{kernel}_in_thread_zero_only", REPORT + text, REPORT.replace("bad", "bad && threadIdx.x == 0") + text)
        for kernel, text in AFTER.items()
    ),
    # finite
    Mutant("numbers_past_the_end", "at < count; at += step", "at <= count; at += step", "address"),
    Mutant("last_numbers_missing", "at < count; at += step", "at + 1 < count; at += step"),
    Mutant("threads_overlap", "int64_t at = first * kPerLane;", "int64_t at = first;"),
    Mutant("one_round", "at < count; at += step", "at < count; at = count"),
    Mutant(
        "blocks_overlap",
        "blockIdx.x) * blockDim.x + threadIdx.x;\n  const int64_t step",
        "blockIdx.x) + threadIdx.x;\n  const int64_t step",
    ),
    Mutant("step_too_long", "gridDim.x) * blockDim.x * kPerLane;", "gridDim.x) * blockDim.x * kPerLane * 2;"),
    Mutant("only_the_last_numbers_count", "bad |= !(fabsf(x.x)", "bad = !(fabsf(x.x)"),
    *(Mutant(f"{part}_is_not_looked_at", f"!(fabsf(x.{part}) <= kMaxFloat)", "false") for part in "xyzw"),
    Mutant("nan_is_fine", "!(fabsf(x.y) <= kMaxFloat)", "fabsf(x.y) > kMaxFloat"),
    Mutant("minus_infinity_is_fine", "!(fabsf(x.z) <= kMaxFloat)", "!(x.z <= kMaxFloat)"),
    Mutant("infinity_is_the_limit", "kMaxFloat = 3.402823466e+38f", "kMaxFloat = __builtin_inff()"),
    Mutant("a_limit_too_low", "kMaxFloat = 3.402823466e+38f", "kMaxFloat = 9.9e14f"),
    # neighbours
    Mutant("lists_unbounded", "  if (row >= rows) return;\n  if (row <", "  if (row <", "address"),
    Mutant(
        "last_list_missing",
        "  if (row >= rows) return;\n  if (row <",
        "  if (row >= rows - 1) return;\n  if (row <",
    ),
    Mutant("distinct_in_every_row", "  if (row < first_row || row >= last_row) distinct = 0;\n", ""),
    Mutant("distinct_from_the_row_before", "if (row < first_row ||", "if (row < first_row - 1 ||"),
    Mutant("distinct_from_the_row_after", "if (row < first_row ||", "if (row <= first_row ||"),
    Mutant("distinct_in_one_row_more", "|| row >= last_row)", "|| row > last_row)"),
    Mutant("distinct_in_one_row_less", "|| row >= last_row)", "|| row >= last_row - 1)"),
    Mutant("indices_past_the_end", "t < k; t += kWarp", "t <= k; t += kWarp", "address"),
    Mutant("last_index_missing", "t < k; t += kWarp", "t < k - 1; t += kWarp"),
    Mutant("first_warp_of_indices", "t < k; t += kWarp", "t < k; t = k"),
    Mutant("only_the_last_index_counts", "bad |= j < 0 || j >= samples;", "bad = j < 0 || j >= samples;"),
    Mutant("negative_indices", "bad |= j < 0 || j >= samples;", "bad |= j >= samples;"),
    Mutant("indices_of_n", "bad |= j < 0 || j >= samples;", "bad |= j < 0 || j > samples;"),
    Mutant("indices_up_to_the_number_of_lists", "j >= samples;", "j >= rows;"),
    Mutant("all_must_be_distinct", "    if (t >= distinct) continue;\n", ""),
    Mutant("one_more_must_be_distinct", "if (t >= distinct) continue;", "if (t > distinct) continue;"),
    Mutant("the_last_distinct", "if (t >= distinct) continue;", "if (t >= distinct - 1) continue;"),
    Mutant("but_the_first", "int64_t s = 0; s < t", "int64_t s = 1; s < t"),
    Mutant("but_the_one_before", "int64_t s = 0; s < t", "int64_t s = 0; s < t - 1"),
    Mutant("an_index_and_itself", "int64_t s = 0; s < t", "int64_t s = 0; s <= t"),
    Mutant(
        "blocks_of_lists_missing",
        "return launch(check_neighbors_kernel, blocks_for(rows, kWarpsPerBlock)",
        "return launch(check_neighbors_kernel, blocks_for(rows, kWarpsPerBlock + 1)",
    ),
    # row_ptr
    Mutant("row_ptr_unbounded", "row < rows && row_ptr[row] >", "row_ptr[row] >", "address"),
    Mutant("last_step_missing", "row < rows && row_ptr", "row < rows - 1 && row_ptr", "address"),
    Mutant("empty_rows_are_wrong", "row_ptr[row] > row_ptr[row + 1]", "row_ptr[row] >= row_ptr[row + 1]"),
    Mutant("decrease_is_fine", "row < rows && row_ptr[row] > row_ptr[row + 1]", "false"),
    Mutant("any_start", "row_ptr[0] != 0 || ", ""),
    Mutant("any_end", "row_ptr[0] != 0 || row_ptr[rows] != nnz", "row_ptr[0] != 0"),
    Mutant("end_too_high", "row_ptr[rows] != nnz", "row_ptr[rows] < nnz", "address"),
    Mutant("ends_forget_the_rest", "bad |= row_ptr[0]", "bad = row_ptr[0]", "address"),
    Mutant("no_rows_no_block", "rows > 0 ? rows : 1", "rows"),
    Mutant("rows_of_one_block", "blocks_for(rows > 0 ? rows : 1, kThreads)", "1"),
    # rows
    Mutant("rows_unbounded", "  if (row >= rows) return;  // whole warps leave together\n", "", "address"),
    Mutant("last_row_missing", "if (row >= rows) return;  // whole", "if (row >= rows - 1) return;  // whole"),
    Mutant("entries_past_the_end", "t < end; t += kWarp", "t <= end; t += kWarp", "address"),
    Mutant("last_entry_missing", "t < end; t += kWarp", "t < end - 1; t += kWarp"),
    Mutant("first_warp_of_entries", "t < end; t += kWarp", "t < end; t = end"),
    Mutant("only_the_last_column_counts", "bad |= j < 0 || j >= num_cols ||", "bad = j < 0 || j >= num_cols ||"),
    Mutant("negative_columns", "bad |= j < 0 || j >= num_cols || (", "bad |= j >= num_cols || ("),
    Mutant("columns_of_n", "bad |= j < 0 || j >= num_cols || (", "bad |= j < 0 || j > num_cols || ("),
    Mutant("columns_up_to_the_number_of_rows", "j >= num_cols ||", "j >= rows ||"),
    Mutant("columns_descend", " || (t > begin && col_idx[t - 1] >= j)", ""),
    Mutant("columns_repeat", "col_idx[t - 1] >= j", "col_idx[t - 1] > j"),
    Mutant("columns_ascend_into_the_row", "t > begin && col_idx", "t > 0 && col_idx"),
    Mutant("before_the_first_column", "t > begin && col_idx", "col_idx", "address"),
    Mutant("zero_is_positive", "bad |= values[t] <= 0", "bad |= values[t] < 0"),
    Mutant("any_sign", "      bad |= values[t] <= 0;\n", ""),
    Mutant("only_the_last_value_counts", "bad |= values[t] <= 0", "bad = values[t] <= 0"),
    Mutant("sum_of_one_entry", "sum += values[t]", "sum = values[t]"),
    Mutant("sum_of_32_bits", "int64_t sum = 0;", "int32_t sum = 0;"),
    Mutant("sum_looks_down", "__shfl_xor_sync", "__shfl_down_sync"),
    Mutant("half_of_the_sum", "__shfl_xor_sync(kAllLanes, sum, step)", "__shfl_xor_sync(0xffffu, sum, step)"),
    Mutant("fold_ends_early", "step > 0; step /= 2", "step > 1; step /= 2"),
    Mutant("fold_starts_late", "int step = kWarp / 2;", "int step = kWarp / 4;"),
    Mutant("empty_rows_sum_to_one", "bad |= begin < end && sum != kOne", "bad |= sum != kOne"),
    Mutant("any_sum", "bad |= begin < end && sum != kOne", "bad |= false"),
]

EQUIVALENT = {}
