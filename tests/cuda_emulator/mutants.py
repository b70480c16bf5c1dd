"""The kernels with one mistake each: what the tests of the kernels must notice, and under which sanitizer they do.

Every run also compares results and errors, so `plain` is enough unless only a sanitizer can see the mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

import emulator_build as build


@dataclass(frozen=True)
class Mutant:
    name: str
    old: str
    new: str
    sanitizer: str = "plain"
    kernel: str = "round_features"

    def source(self) -> str:
        text = next(path for path in build.KERNELS if path.stem == self.kernel).read_text()
        assert text.count(self.old) == 1, (
            f"mutant {self.name}: {self.old!r} is {text.count(self.old)} times in the kernel"
        )
        return text.replace(self.old, self.new)


MUTANTS = [
    # bounds
    Mutant("rows_unbounded", "  if (row >= rows) return;", "", sanitizer="address"),
    Mutant("one_row_more", "if (row >= rows) return;", "if (row > rows) return;", sanitizer="address"),
    Mutant("one_row_less", "if (row >= rows) return;", "if (row >= rows - 1) return;"),
    Mutant("last_block_missing", "(rows + kWarpsPerBlock - 1) / kWarpsPerBlock", "rows / kWarpsPerBlock"),
    Mutant("columns_past_the_end", "base < d;", "base <= d;", sanitizer="address"),
    Mutant("tail_read_unbounded", "c < width ? in[base + c] : 0.0f", "in[base + c]", sanitizer="address"),
    Mutant("tail_written_unbounded", "      if (c >= width) break;\n", "", sanitizer="address"),
    Mutant("tail_one_short", "if (c >= width) break;", "if (c >= width - (width < kPerLane)) break;"),
    Mutant("every_width_is_aligned", "d % kPerLane == 0 && ", "", sanitizer="address"),
    Mutant(
        "every_pointer_is_aligned",
        " && reinterpret_cast<uintptr_t>(features) % sizeof(float4) == 0",
        "",
        sanitizer="address",
    ),
    # indices
    Mutant(
        "rows_of_a_block_overlap",
        "static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock",
        "static_cast<int64_t>(blockIdx.x)",
    ),
    Mutant("lanes_overlap", "static_cast<int64_t>(lane) * kPerLane;", "static_cast<int64_t>(lane);"),
    Mutant("vector_components_swapped", "x[0] = loaded.x, x[1] = loaded.y", "x[0] = loaded.y, x[1] = loaded.x"),
    # arithmetic
    Mutant("not_scaled", "static_cast<double>(x[c]) * power", "static_cast<double>(x[c])"),
    Mutant("residual_of_the_unrounded", "static_cast<double>(float_from_half(half))", "static_cast<double>(x[c])"),
    Mutant("norm_not_rounded_up", "norm_above(sum_sq)", "static_cast<float>(sqrt(sum_sq))"),
    # the fold: masks, steps, order
    Mutant("half_of_the_lanes_in_the_mask", "kAllLanes, sums[c], step", "0x0000ffffu, sums[c], step"),
    Mutant("fold_starts_late", "int step = kWarp / 2;", "int step = kWarp / 4;"),
    Mutant("fold_ends_early", "step > 0;", "step > 1;"),
    Mutant("fold_skips_steps", "step /= 2", "step /= 4"),
    Mutant("fold_looks_up", "__shfl_down_sync", "__shfl_up_sync"),
    Mutant(
        "fold_in_another_order", "int step = kWarp / 2; step > 0; step /= 2", "int step = 1; step < kWarp; step *= 2"
    ),
    Mutant(
        "pairs_in_another_order",
        "(sums[0] + sums[2]) + (sums[1] + sums[3])",
        "((sums[0] + sums[1]) + sums[2]) + sums[3]",
    ),
    Mutant("neighbors_first", "(sums[0] + sums[2]) + (sums[1] + sums[3])", "(sums[0] + sums[1]) + (sums[2] + sums[3])"),
    Mutant("every_lane_writes_the_norm", "if (lane == 0) residual_norm", "residual_norm"),
    # bad values
    Mutant("only_the_last_value_counts", "bad |=", "bad ="),
    Mutant("nan_is_fine", "!(fabs(scaled) <= kMaxHalf)", "fabs(scaled) > kMaxHalf"),
    Mutant("the_limit_is_bad", "fabs(scaled) <= kMaxHalf", "fabs(scaled) < kMaxHalf"),
    Mutant("a_limit_too_high", "kMaxHalf = 65504.0f", "kMaxHalf = 65519.0f"),
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
    Mutant(
        "every_lane_writes_the_same_row",
        "if (lane == 0) residual_norm[row] = norm_above(sum_sq)",
        "residual_norm[row] = norm_above(__shfl_sync(kAllLanes, sum_sq, 0))",
        sanitizer="thread",
    ),
]

# No test can notice these, and here is why.
EQUIVALENT = {
    Mutant("fold_by_xor", "__shfl_down_sync", "__shfl_xor_sync"): "addition commutes: lane 0 folds the same tree",
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
