"""Cases and mutants of round_features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from emulator_cases import Case, Mutant

MAX_HALF = 65504.0
HEADER = ("address", "warp.cuh")


def mixed(rows: int, d: int, exponent: int = 0, seed: int = 0) -> torch.Tensor:
    """Magnitudes from below the float16 denormals to the largest float16, for features scaled by 2**exponent."""
    random = np.random.default_rng([rows, d, seed])
    values = np.ldexp(random.uniform(-1, 1, (rows, d)), random.integers(-32, 16, (rows, d)))
    values = np.where(random.random((rows, d)) < 0.05, random.choice([0.0, -0.0, MAX_HALF, -MAX_HALF]), values)
    return torch.from_numpy(np.ldexp(values, -exponent).astype(np.float32))


def every_half_and_tie() -> torch.Tensor:
    """Every finite float16, the middle between each and the next, and the float32 numbers next to the middle."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate(
        [halves, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))]
    )
    signs = np.where(np.arange(values.size) % 2, np.float32(-1), np.float32(1))
    d = 515
    return torch.from_numpy(np.resize(values * signs, (values.size // d + 1, d)))


def norm_above(sum_sq: float) -> np.float32:
    """As in csrc/canonical/half.h."""
    bound = np.sqrt(sum_sq) * (1 + 2.0**-40)
    rounded = np.float32(bound)
    return np.nextafter(rounded, np.float32(np.inf)) if rounded < bound else rounded


def order_sensitive(rows: int, d: int) -> torch.Tensor:
    """Rows whose residual norm changes with the order in which the squares are added.

    Numbers below 2**-25 round to zero and are their own residual. The first three columns of one partial sum add up to
    the largest float64 whose norm is a given float32; a few more squares of 0.3 units in its last place are lost one by
    one, but not once two of them have met.
    """
    random = np.random.default_rng(7)
    features = np.zeros((rows, d), np.float32)
    for row in features:
        target = random.uniform(1, 2) * 2.0**-60
        limit = norm_above(target)
        low, high = target, target * (1 + 2.0**-20)  # bisection: the largest sum with this norm
        while np.nextafter(low, np.inf) < high:
            middle = (low + high) / 2
            low, high = (middle, high) if norm_above(middle) == limit else (low, middle)
        lane = random.integers(128)
        rest = low
        for k in range(lane, lane + 3 * 128, 128):
            row[k] = np.nextafter(np.float32(np.sqrt(rest)), np.float32(0))
            rest -= float(row[k]) ** 2
        others = random.permutation(np.setdiff1d(np.arange(128), [lane]))[: random.integers(2, 8)]
        row[others] = np.float32(np.sqrt(0.3 * np.spacing(low)))
    return torch.from_numpy(features)


def rounding(name: str, features: torch.Tensor, exponent: int) -> Case:
    return Case(f"round_features, {name}", "round_features", (features, exponent))


def good_cases() -> Iterator[Case]:
    for rows in (1, 7, 8, 9, 129):
        for d in (1, 3, 4, 31, 127, 128, 129, 2048 + 32):
            yield rounding(f"{rows} x {d}", mixed(rows, d), 0)
    yield rounding("no rows", torch.zeros(0, 7), 3)
    yield rounding("no columns", torch.zeros(5, 0), 3)
    for exponent in (-100, -14, 9, 100, 127):
        yield rounding(f"exponent {exponent}", mixed(9, 33, exponent), exponent)
    limits = torch.finfo(torch.float32)
    extreme = torch.tensor([[limits.max, limits.min, limits.tiny, -limits.smallest_normal, 1e-45, -1e-45, 0.0, -0.0]])
    yield rounding("the range of float32", extreme, -126)
    yield rounding("every half and every tie", every_half_and_tie(), 0)
    yield rounding("the order of additions", order_sensitive(64, 515), 0)
    flat = mixed(1, 8 * 9 * 4 + 4).flatten()
    for offset in (1, 2, 3):  # rows of a multiple of 16 bytes that do not start at one
        yield rounding(f"starting at float {offset}", flat[offset : offset + 8 * 9 * 4].view(9, 32), 0)
    yield rounding("transposed", mixed(40, 9).T, 0)
    yield rounding("one column again and again", mixed(9, 1).expand(-1, 7), 0)


def bad_cases() -> Iterator[Case]:
    beyond = float(np.nextafter(np.float32(MAX_HALF), np.float32(1e9)))
    rows, d = 129, 131
    for value in (float("nan"), float("inf"), float("-inf"), beyond, -1e30):
        for row, column in ((0, 0), (8, 130), (128, 64), (77, 3)):
            features = mixed(rows, d)
            features[row, column] = value
            yield rounding(f"{value} at {row}, {column}", features, 0)
    features = mixed(rows, d)
    features[100, 5] = float("nan")
    features[41, 130] = 7e4
    features[41, 129] = -1e5
    features[42, 0] = float("inf")
    yield rounding("several bad rows", features, 0)
    yield rounding("every row is bad", torch.full((rows, 5), 40000.0), 1)
    yield rounding("exponent too large", mixed(2, 2), 128)
    yield rounding("exponent too small", mixed(2, 2), -127)
    yield rounding("one axis", torch.zeros(4), 0)
    yield rounding("float64", torch.zeros(4, 4, dtype=torch.float64), 0)


MUTANTS = [
    # bounds
    Mutant("rows_unbounded", "  if (row >= rows) return;", "", sanitizer="address"),
    Mutant("one_row_more", "if (row >= rows) return;", "if (row > rows) return;", sanitizer="address"),
    Mutant("one_row_less", "if (row >= rows) return;", "if (row >= rows - 1) return;"),
    Mutant("last_block_missing", "(rows + kWarpsPerBlock - 1) / kWarpsPerBlock", "rows / kWarpsPerBlock"),
    Mutant("columns_past_the_end", "base < d;", "base <= d;", sanitizer="address"),
    Mutant("tail_written_unbounded", "      if (base + c >= d) break;\n", "", sanitizer="address"),
    Mutant("tail_one_short", "if (base + c >= d) break;", "if (base + c >= d - (d % kPerLane != 0)) break;"),
    *(
        Mutant(
            f"tail_{c}_read_unbounded", f"column + {c} < d ? row[column + {c}] : 0.0f", f"row[column + {c}]", *HEADER
        )
        for c in (1, 2, 3)
    ),
    Mutant("every_width_is_aligned", "d % kPerLane == 0 && ", "", *HEADER),
    Mutant("every_pointer_is_aligned", " && reinterpret_cast<uintptr_t>(base) % sizeof(float4) == 0", "", *HEADER),
    Mutant("always_aligned", "if (aligned) return", "return", *HEADER),
    # indices
    Mutant(
        "rows_of_a_block_overlap",
        "static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock",
        "static_cast<int64_t>(blockIdx.x)",
    ),
    Mutant("lanes_overlap", "static_cast<int64_t>(lane) * kPerLane;", "static_cast<int64_t>(lane);"),
    Mutant("vector_components_swapped", "{loaded.x, loaded.y,", "{loaded.y, loaded.x,"),
    # arithmetic
    Mutant("not_scaled", "static_cast<double>(x[c]) * power", "static_cast<double>(x[c])"),
    Mutant("residual_of_the_unrounded", "static_cast<double>(float_from_half(half))", "static_cast<double>(x[c])"),
    Mutant("norm_not_rounded_up", "norm_above(sum_sq)", "static_cast<float>(sqrt(sum_sq))"),
    # the fold: masks, steps, order
    *(
        Mutant(name, old, new, file="warp.cuh")
        for name, old, new in (
            (
                "half_of_the_lanes_in_the_mask",
                "__shfl_xor_sync(kAllLanes, sums[c]",
                "__shfl_xor_sync(0x0000ffffu, sums[c]",
            ),
            ("fold_starts_late", "int step = kWarp / 2;", "int step = kWarp / 4;"),
            ("fold_ends_early", "step > 0;", "step > 1;"),
            ("fold_skips_steps", "step /= 2", "step /= 4"),
            ("fold_looks_up", "__shfl_xor_sync", "__shfl_up_sync"),
            (
                "fold_in_another_order",
                "int step = kWarp / 2; step > 0; step /= 2",
                "int step = 1; step < kWarp; step *= 2",
            ),
            (
                "pairs_in_another_order",
                "(sums[0] + sums[2]) + (sums[1] + sums[3])",
                "((sums[0] + sums[1]) + sums[2]) + sums[3]",
            ),
            (
                "neighbors_first",
                "(sums[0] + sums[2]) + (sums[1] + sums[3])",
                "(sums[0] + sums[1]) + (sums[2] + sums[3])",
            ),
        )
    ),
    Mutant("every_lane_writes_the_norm", "if (lane == 0) residual_norm", "residual_norm", sanitizer="thread"),
    # bad values
    Mutant("only_the_last_value_counts", "bad |=", "bad ="),
    Mutant("nan_is_fine", "!(fabs(scaled) <= kMaxHalf)", "fabs(scaled) > kMaxHalf"),
    Mutant("the_limit_is_bad", "fabs(scaled) <= kMaxHalf", "fabs(scaled) < kMaxHalf"),
    Mutant("a_limit_too_high", "fabs(scaled) <= kMaxHalf", "fabs(scaled) <= kMaxHalf + 15.0f"),
    Mutant("only_lane_zero_looks", "__any_sync(kAllLanes, bad) && lane == 0", "bad && lane == 0"),
    Mutant("the_whole_warp_must_be_bad", "__any_sync", "__all_sync"),
    Mutant("the_last_bad_row", "atomicMin(bad_row,", "atomicMax(bad_row,"),
    Mutant("any_bad_row", "atomicMin(bad_row,", "atomicExch(bad_row,"),
    Mutant(
        "not_atomic",
        "atomicMin(bad_row, static_cast<unsigned long long>(row))",
        "*bad_row = min(*bad_row, static_cast<unsigned long long>(row))",
        sanitizer="thread",
    ),
]

# No test can notice these, and here is why.
EQUIVALENT = {
    Mutant(
        "fold_looks_down", "__shfl_xor_sync", "__shfl_down_sync", file="warp.cuh"
    ): "addition commutes: lane 0, the only one that writes, folds the same tree",
    Mutant(
        "unfused", "fma(residual, residual, sums[c])", "sums[c] + residual * residual"
    ): "the product of two residuals of at most 24 bits is exact in float64",
    Mutant(
        "every_lane_reports", "__any_sync(kAllLanes, bad) && lane == 0", "__any_sync(kAllLanes, bad)"
    ): "the minimum of equal numbers, 32 times",
    Mutant(
        "scaled_in_float32", "static_cast<float>(scaled)", "static_cast<float>(x[c]) * static_cast<float>(power)"
    ): "a power of two: exact, or below every float16",
}
