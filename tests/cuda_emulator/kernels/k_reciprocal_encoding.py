"""Cases and mutants of k_reciprocal_encoding and its pieces: any lists, any length, and every bit of the CPU's rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from emulator_cases import Case, Mutant
from generators import csr_from_dense, duplicated_features, edited, gallery, grid_features, random_lists


def case(name: str, features, neighbor_idx, k1_half: int) -> Case:
    features, neighbor_idx = torch.as_tensor(features), torch.as_tensor(neighbor_idx)
    return Case(f"k_reciprocal_encoding, {name}", "k_reciprocal_encoding", (features, neighbor_idx, k1_half))


def lists_of(features, k1: int) -> torch.Tensor:
    return torch.ops.dmic.knn_graph(torch.as_tensor(features), k1)[0]


def searched(name: str, features, k1: int, k1_half: int) -> Case:
    return case(name, features, lists_of(features, k1), k1_half)


def sets(name: str, neighbor_idx, k1_half: int, begin: int, end: int) -> Case:
    arguments = torch.as_tensor(neighbor_idx), k1_half, begin, end
    return Case(f"k_reciprocal_sets, {name}, rows {begin} to {end}", "k_reciprocal_sets", arguments)


def dots(name: str, rows, others, pattern: tuple[np.ndarray, np.ndarray]) -> Case:
    return Case(f"sampled_dots, {name}", "sampled_dots", tuple(map(torch.as_tensor, (rows, others, *pattern))))


def weights(name: str, pattern: tuple[np.ndarray, np.ndarray], products: np.ndarray) -> Case:
    arguments = tuple(map(torch.as_tensor, (*pattern, products)))
    return Case(f"k_reciprocal_weights, {name}", "k_reciprocal_weights", arguments)


def random_pattern(num_rows: int, num_cols: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """row_ptr and col_idx; the first row and one in the middle are empty, the last one is full."""
    stored = np.random.default_rng(num_cols).random((num_rows, num_cols)) < share
    stored[[0, num_rows // 2]], stored[-1] = False, True
    rows = csr_from_dense(stored)
    return rows.row_ptr, rows.col_idx


def long_and_short() -> np.ndarray:
    """Lists in which the first 26 samples all know each other, and the others only themselves."""
    rng = np.random.default_rng(8)
    lists = np.stack([rng.permutation(26) for _ in range(40)])
    lists[26:, rng.integers(26)] = np.arange(26, 40)
    return lists.astype(np.int32)


def good_cases() -> Iterator[Case]:
    yield searched("a gallery", gallery(60, 31).features, 15, 8)
    yield searched("lists of two words", gallery(37, 12).features, 34, 20)
    yield searched("half lists of two words", gallery(36, 12).features, 36, 34)
    yield searched("half lists of one", gallery(40, 9).features, 9, 0)
    yield searched("sets of many words, which a warp uses for many rows", gallery(330, 9).features, 12, 6)
    yield case("any lists", gallery(83, 5).features, random_lists(83, 12), 6)
    yield case("any long lists", gallery(40, 5).features, random_lists(40, 34), 32)
    yield case("long rows and short ones", gallery(40, 4).features, long_and_short(), 20)
    yield searched("duplicates", duplicated_features(60, 7, copies=20)[0], 8, 4)
    yield searched("equal rows", np.full((40, 11), 0.3, np.float32), 9, 4)
    yield searched("integers", grid_features(50, 3), 8, 4)
    yield searched("weights that round to zero", 4 * gallery(61, 40, noise=2.0).features, 20, 10)
    for scale in (1e-43, 3e38):
        features = gallery(40, 140).features
        yield case(
            f"norms around {scale}", (features.astype(np.float64) * scale).astype(np.float32), lists_of(features, 9), 4
        )
    flat = torch.from_numpy(gallery(1, 40 * 8 + 4).features).flatten()
    lists = random_lists(40, 6)
    for offset in (1, 2):  # rows of a multiple of 16 bytes that do not start at one
        yield case(f"starting at float {offset}", 5 * flat[offset : offset + 320].view(40, 8), lists, 3)
    wide = torch.from_numpy(gallery(80, 20).features)
    yield case("strided", wide[::2, 3:14], torch.from_numpy(lists).T.contiguous().T, 3)
    yield case("no columns", np.zeros((12, 0), np.float32), random_lists(12, 5), 2)
    yield case("one sample", np.ones((1, 3), np.float32), np.zeros((1, 1), np.int32), 0)
    yield case("no samples", np.zeros((0, 3), np.float32), np.zeros((0, 5), np.int32), 2)
    yield from good_pieces()


def good_pieces() -> Iterator[Case]:
    for begin, end in ((0, 40), (0, 1), (39, 40), (7, 8), (13, 31), (20, 20), (40, 40)):
        yield sets("long rows and short ones", long_and_short(), 20, begin, end)
        yield sets("any long lists", random_lists(40, 34), 32, begin, end)
    lists = random_lists(40, 8)
    yield sets("twice in rows that are not wanted", edited(lists, ([9, 21], 5), lists[[9, 21], 2]), 4, 10, 21)
    yield sets("no samples", np.zeros((0, 5), np.int32), 2, 0, 0)
    features, flat = gallery(90, 36).features, torch.from_numpy(gallery(1, 90 * 36 + 4).features).flatten()
    for name, rows, others in (
        ("more others than rows", features[:23], features),
        ("more rows than others", features, features[:5]),
        ("columns of no multiple of four", features[:23, :31], features[30:, :31]),
        ("others that start at float 1", features[:23], flat[1 : 1 + 90 * 36].view(90, 36)),
        ("rows that start at float 1", flat[1 : 1 + 23 * 36].view(23, 36), features),
        ("huge and tiny", 3e38 * features[:9], np.float32(1e-43) * features),
        ("no columns", features[:9, :0], features[:7, :0]),
    ):
        yield dots(name, rows, others, random_pattern(len(rows), len(others), 0.2))
    nothing = np.zeros(1, np.int64), np.zeros(0, np.int32)
    yield dots("no rows", features[:0], features, nothing)
    yield dots("no others", features[:3], features[:0], (np.zeros(4, np.int64), nothing[1]))
    random = np.random.default_rng(3)
    for num_rows, num_cols in ((6, 300), (41, 40), (300, 7)):
        pattern = random_pattern(num_rows, num_cols, 0.3)
        nnz = len(pattern[1])
        yield weights(f"{num_rows} rows of {num_cols}", pattern, random.uniform(-1, 1, nnz))
        yield weights(f"equal dots in {num_rows} rows of {num_cols}", pattern, np.full(nnz, 0.3))
        yield weights(f"weights of zero in {num_rows} rows of {num_cols}", pattern, random.normal(0, 10, nnz))
        yield weights(f"huge dots in {num_rows} rows of {num_cols}", pattern, random.uniform(-8e307, 8e307, nnz))
    yield weights("columns beyond int32 / 2", (np.arange(2), np.array([2**31 - 2], np.int32)), np.ones(1))
    yield weights("no rows", nothing, np.zeros(0))


def bad_cases() -> Iterator[Case]:
    yield from bad_pieces()
    features, lists = gallery(40, 6).features, random_lists(40, 8)
    for value in (np.nan, np.inf, -np.inf):
        yield case(f"{value}", edited(features, (17, 4), value), lists, 4)
    for value in (-1, 40):
        yield case(f"index {value}", features, edited(lists, (30, 7), value), 4)
    twice = edited(lists, (33, 7), lists[33, 2])
    yield case("twice in a row", features, twice, 4)
    yield case("twice, and out of range further on", features, edited(twice, (39, 0), 41), 4)
    yield case("everything at once", edited(features, (39, 5), np.inf), edited(twice, (3, 3), -2), 4)
    yield case("half list too long", features, lists, 8)
    yield case("float64", features.astype(np.float64), lists, 4)


def bad_pieces() -> Iterator[Case]:
    features, lists = gallery(40, 6).features, random_lists(40, 8)
    for begin, end in ((-1, 4), (5, 4), (0, 41), (41, 41)):
        yield sets("wrong rows", lists, 4, begin, end)
    yield sets("half list too long", lists, 8, 3, 9)
    yield sets("index 40", edited(lists, (30, 7), 40), 4, 3, 9)
    twice = edited(lists, (9, 7), lists[9, 2])
    for begin, end in ((9, 20), (2, 10)):
        yield sets("twice in a row", twice, 4, begin, end)
    pattern = row_ptr, col_idx = random_pattern(40, 20, 0.3)
    others = features[:20]
    yield dots("a column too far", features, others[:19], pattern)
    yield dots("rows that are not finite", edited(features, (17, 4), np.nan), others, pattern)
    yield dots("others that are not finite", features, edited(others, (17, 4), -np.inf), pattern)
    yield dots("both", edited(features, (39, 5), np.inf), edited(others, (0, 0), np.nan), pattern)
    yield dots("others of another width", features, others[:, :5], pattern)
    yield dots("a row too many", features[:39], others, pattern)
    yield dots("columns that do not ascend", features, others, (row_ptr, col_idx[::-1].copy()))
    yield dots("row_ptr that falls", features, others, (edited(row_ptr, 5, 300), col_idx))
    products = np.random.default_rng(4).uniform(-1, 1, len(col_idx))
    for value, at in ((np.nan, 0), (np.inf, 7), (-np.inf, 31), (2.0**1023, 40), (-(2.0**1023), 44), (np.nan, -1)):
        yield weights(f"{value} at {at}", pattern, edited(products, at, value))
    yield weights("all are wrong", pattern, np.full(len(col_idx), np.nan))
    yield weights("a column below zero", (row_ptr, edited(col_idx, 0, -1)), products)
    yield weights("a dot too few", pattern, products[1:])
    yield weights("float32", pattern, products.astype(np.float32))
    pattern = random_pattern(6, 300, 0.3)  # rows in which a lane has several
    products = np.random.default_rng(5).uniform(-1, 1, len(pattern[1]))
    yield weights("nan at the start of a long row", pattern, edited(products, 0, np.nan))


MUTANTS = [
    # marking
    Mutant("mark_rows_unbounded", "  if (row >= last_row) return;  // whole warps leave together\n", "", "address"),
    Mutant("list_searched_past_its_end", "t < length && list[t] == value", "list[t] == value", "address"),
    Mutant("half_of_the_lanes_search", "__ballot_sync(kAllLanes, t < length", "__ballot_sync(0xffffu, t < length"),
    Mutant("only_one_word_of_a_list_is_searched", "base < length; base", "base < min(length, 32); base"),
    Mutant("found_one_too_far", "__ffs(static_cast<int>(votes)) - 1", "__ffs(static_cast<int>(votes))"),
    Mutant("half_set_of_the_whole_list", "position < half && t < half", "position < half"),
    Mutant("half_set_in_the_whole_list_of_others", "position < half && t < half", "position < k1 && t < half"),
    Mutant("mask_past_the_list", "min(k1, (word + 1) * kMaskBits)", "(word + 1) * kMaskBits"),
    Mutant("every_lane_writes_the_mask", "    if (lane_index() != 0) continue;\n", "", "thread"),
    Mutant("mask_past_the_half_list", "if (word < mask_words(half)) ", "", "address"),
    # sets
    Mutant(
        "everything_is_new", "return !(atomicOr(word_of(j), bit) & bit);", "return atomicOr(word_of(j), bit), true;"
    ),
    Mutant(
        "insert_is_not_atomic",
        "return !(atomicOr(word_of(j), bit) & bit);",
        "const uint32_t old = *word_of(j);\n    *word_of(j) = old | bit;\n    return !(old & bit);",
        "thread",
    ),
    Mutant("clear_is_not_atomic", "atomicExch(word_of(j), 0u)", "*word_of(j) = 0u", "thread"),
    Mutant("warps_share_a_set", "reciprocal(sets + 2 * warp * set_words)", "reciprocal(sets + warp * set_words)"),
    # expanding
    Mutant("half_of_the_lanes_append", "__ballot_sync(kAllLanes, added", "__ballot_sync(0xffffu, added"),
    Mutant("appended_one_too_far", "((1u << lane_index()) - 1)", "((2u << lane_index()) - 1)"),
    Mutant(
        "rows_taken_twice",
        "int64_t warps = static_cast<int64_t>(gridDim.x) * kExpandWarps",
        "int64_t warps = gridDim.x",
        "thread",
    ),
    Mutant("a_row_left_out", "row += warps) {", "row += warps + 1) {"),
    Mutant(
        "set_read_before_it_is_there",
        "    __syncwarp();\n    for_each_reciprocal([&](int32_t q) {\n      int64_t size",
        "    for_each_reciprocal([&](int32_t q) {\n      int64_t size",
        "thread",
    ),
    Mutant("size_of_one_lane", "__popc(__ballot_sync(kAllLanes, marked));", "marked;"),
    Mutant(
        "shared_of_half_of_the_lanes",
        "__ballot_sync(kAllLanes, marked && reciprocal",
        "__ballot_sync(0xffffu, marked && reciprocal",
    ),
    Mutant("shared_with_the_expanded_set", "marked && reciprocal.contains(j)", "marked && expanded.contains(j)"),
    Mutant("two_thirds_are_enough", "3 * shared > 2 * size", "3 * shared >= 2 * size"),
    Mutant("sizes_of_all_rows", "lengths[row - first_row]", "lengths[row]", "address"),
    Mutant("members_of_all_rows", "col_idx + row_ptr[row - first_row]", "col_idx + row_ptr[row]", "address"),
    Mutant("every_lane_writes_the_length", "if (!kFill && lane_index() == 0)", "if (!kFill)", "thread"),
    Mutant("set_cleared_while_it_is_read", "(count);\n    __syncwarp();\n", "(count);\n", "thread"),
    Mutant("reciprocal_not_cleared", "        reciprocal.clear_around(q);\n", ""),
    Mutant("half_sets_not_cleared", "        if (marked) expanded.clear_around(j);\n", ""),
    Mutant("next_row_before_the_set_is_clear", "    });\n    __syncwarp();\n  }\n", "    });\n  }\n"),
    # sorting
    Mutant("row_too_long_for_shared_memory", "if (length > capacity)", "if (length > capacity + 2)", "address"),
    Mutant(
        "shared_memory_too_small", "static_cast<size_t>(capacity) *", "static_cast<size_t>(capacity - 1) *", "address"
    ),
    Mutant("long_rows_not_sorted", "      block_sort(columns, length);\n", ""),
    Mutant("short_rows_not_sorted", "    block_sort(sorted, length);\n", "    __syncthreads();\n"),
    # dot products
    Mutant(
        "dot_rows_unbounded",
        "  if (row >= last_row) return;\n  const int64_t begin = row_ptr[row], end",
        "  const int64_t begin = row_ptr[row], end",
        "address",
    ),
    Mutant("columns_past_the_end", "col_idx[min(base + r, end - 1)]", "col_idx[base + r]", "address"),
    Mutant("dots_past_the_end", "if (lane_index() == r && base + r < end)", "if (lane_index() == r)", "address"),
    Mutant("every_lane_writes_the_dots", "if (lane_index() == r && base + r < end)", "if (base + r < end)", "thread"),
    Mutant("others_are_the_rows", "= others + col_idx", "= rows + col_idx"),
    Mutant("only_rows_are_aligned", " && rows_are_aligned(others, d)", "", "address"),
    Mutant("only_others_are_aligned", "rows_are_aligned(rows, d) && ", "", "address"),
    # weighing
    Mutant(
        "weigh_rows_unbounded",
        "  if (row >= last_row) return;\n  const int64_t begin = row_ptr[row], count",
        "  const int64_t begin = row_ptr[row], count",
        "address",
    ),
    Mutant("only_the_last_dot_counts", "bad |= !(fabs", "bad = !(fabs"),
    Mutant("nan_is_fine", "!(fabs(dot) < kDotLimit)", "fabs(dot) >= kDotLimit"),
    Mutant("minus_infinity_is_fine", "!(fabs(dot) < kDotLimit)", "!(dot < kDotLimit)"),
    Mutant("the_limit_is_fine", "!(fabs(dot) < kDotLimit)", "!(fabs(dot) <= kDotLimit)"),
    Mutant("half_of_the_lanes_vote", "__any_sync(kAllLanes, bad)", "__any_sync(0xffffu, bad)"),
    Mutant("the_first_lane_votes", "if (__any_sync(kAllLanes, bad))", "if (__shfl_sync(kAllLanes, bad, 0))"),
    Mutant("report_is_not_atomic", "if (lane == 0) atomicOr(wrong, 1ull);", "if (lane == 0) *wrong |= 1;", "thread"),
    Mutant("never_reported", "    if (lane == 0) atomicOr(wrong, 1ull);\n", ""),
    Mutant("largest_of_half_of_the_lanes", "__shfl_xor_sync(kAllLanes, largest", "__shfl_xor_sync(0xffffu, largest"),
    Mutant("smallest_dot", "other > largest ? other : largest", "other < largest ? other : largest"),
    Mutant("total_of_half_of_the_lanes", "__shfl_xor_sync(kAllLanes, total", "__shfl_xor_sync(0xffffu, total"),
    Mutant(
        "shares_read_past_the_end",
        "t < count ? fixed_share(fixed_weight(dots[begin + t], largest), total) : 0",
        "fixed_share(fixed_weight(dots[begin + t], largest), total)",
        "address",
    ),
    Mutant("shares_written_past_the_end", "if (t < count) values", "values", "address"),
    Mutant("half_of_the_lanes_count", "__ballot_sync(kAllLanes, share > 0", "__ballot_sync(0xffffu, share > 0"),
    Mutant("zeros_are_stored", "__ballot_sync(kAllLanes, share > 0", "__ballot_sync(kAllLanes, t < count"),
    Mutant("rest_by_lane", "  summary.fold();\n", ""),
    Mutant("rest_of_an_empty_row", "if (count > 0 && lane ==", "if (lane =="),
    Mutant("rest_added_by_another_lane", "lane == summary.position() % kWarp", "lane == 0", "thread"),
    Mutant("every_lane_writes_the_number", "  if (lane == 0) lengths[row]", "  lengths[row]", "thread"),
    # dropping zeros
    Mutant(
        "drop_rows_unbounded", "  if (row >= last_row) return;\n  const int64_t end", "  const int64_t end", "address"
    ),
    Mutant("values_past_the_end", "p < end ? values[p] : 0", "values[p]", "address"),
    Mutant("half_of_the_lanes_are_kept", "__ballot_sync(kAllLanes, value != 0", "__ballot_sync(0xffffu, value != 0"),
    Mutant("copied_to_one_place", "    out += __popc(votes);\n", ""),
    # sorting, in block_sort.cuh
    *(
        Mutant(name, old, new, sanitizer, "block_sort.cuh")
        for name, old, new, sanitizer in (
            ("sorted_too_early", "  __syncthreads();\n  for (int level", "  for (int level", "thread"),
            ("runs_not_waited_for", "- offset);\n    }\n    __syncthreads();", "- offset);\n    }", "thread"),
            ("strides_not_waited_for", "stride);\n      }\n      __syncthreads();", "stride);\n      }", "thread"),
            ("sorted_past_the_end", "if (high >= count) return;", "if (high > count) return;", "address"),
            ("pairs_missing", "(count - 1) / 2 / half + 1", "(count - 1) / 2 / half", "plain"),
            ("descending", "!(b < a)", "b < a", "plain"),
            ("one_stride_less", "step >= 0; --step", "step > 0; --step", "plain"),
        )
    ),
    # the largest share, in share_row.cuh
    *(
        Mutant(name, old, new, file="share_row.cuh")
        for name, old, new in (
            ("largest_of_half_a_warp", "__shfl_xor_sync(kAllLanes, largest", "__shfl_xor_sync(0xffffu, largest"),
            ("sum_of_half_a_warp", "__shfl_xor_sync(kAllLanes, sum", "__shfl_xor_sync(0xffffu, sum"),
            ("summary_ends_early", "step > 0;", "step > 1;"),
            ("summary_starts_late", "int step = kWarp / 2;", "int step = kWarp / 4;"),
            ("smallest_share", "other > largest", "other < largest"),
            (
                "highest_column_first",
                "(0xffffffffu - static_cast<uint32_t>(position))",
                "static_cast<uint32_t>(position)",
            ),
        )
    ),
]

# No test can notice these, and here is why.
EQUIVALENT = {
    Mutant("every_lane_clears", "      if (lane_index() == 0) {\n", "      {\n"): "a word is cleared 32 times",
    Mutant(
        "bits_cleared_one_by_one", "atomicExch(word_of(j), 0u)", "atomicAnd(word_of(j), ~(1u << (j % kMaskBits)))"
    ): "all bits of the set are visited",
    Mutant(
        "row_that_just_fits_is_sorted_in_place", "if (length > capacity)", "if (length >= capacity)"
    ): "where a row is sorted makes no difference",
}
