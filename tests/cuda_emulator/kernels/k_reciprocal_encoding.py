"""Cases and mutants of k_reciprocal_encoding: any lists, any length, and every bit of the CPU's rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from emulator_cases import Case, Mutant
from generators import duplicated_features, edited, gallery, grid_features, random_lists


def case(name: str, features, neighbor_idx, k1_half: int) -> Case:
    features, neighbor_idx = torch.as_tensor(features), torch.as_tensor(neighbor_idx)
    return Case(f"k_reciprocal_encoding, {name}", "k_reciprocal_encoding", (features, neighbor_idx, k1_half))


def lists_of(features, k1: int) -> torch.Tensor:
    return torch.ops.dmic.knn_graph(torch.as_tensor(features), k1)[0]


def searched(name: str, features, k1: int, k1_half: int) -> Case:
    return case(name, features, lists_of(features, k1), k1_half)


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


def bad_cases() -> Iterator[Case]:
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
    # weighing
    Mutant(
        "weigh_rows_unbounded",
        "  if (row >= last_row) return;\n  const int64_t begin",
        "  const int64_t begin",
        "address",
    ),
    Mutant("members_past_the_end", "members[min(base + r, count - 1)]", "members[base + r]", "address"),
    Mutant("weights_past_the_end", "if (lane == r && base + r < count)", "if (lane == r)", "address"),
    Mutant("weights_read_before_they_are_there", "  __syncwarp();\n  uint64_t total", "  uint64_t total", "thread"),
    Mutant("total_of_half_of_the_lanes", "__shfl_xor_sync(kAllLanes, total", "__shfl_xor_sync(0xffffu, total"),
    Mutant(
        "shares_read_past_the_end",
        "t < count ? fixed_share(static_cast<uint64_t>(weights[t]), total) : 0",
        "fixed_share(static_cast<uint64_t>(weights[t]), total)",
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
