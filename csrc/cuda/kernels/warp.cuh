// What kernels do with a warp: the canonical dot product, and small reductions.
#pragma once

#include "../../canonical/dot.h"
#include "../compat/cuda_compat.h"

namespace dmic {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kPerLane = kDotLanes / kWarp;  // consecutive columns of a lane: one 16-byte load
static_assert(kPerLane == 4, "the folds below work on four partial sums a lane");

// Blocks that a launch over `items` takes.
inline int64_t blocks_for(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// May rows of d floats that start at `base` be read 16 bytes at a time?
__device__ __forceinline__ bool rows_are_aligned(const float* base, int64_t d) {
  return d % kPerLane == 0 && reinterpret_cast<uintptr_t>(base) % sizeof(float4) == 0;
}

// Columns [column, column + 4) of a row of d floats, zero past its end; column < d.
__device__ __forceinline__ float4 load_columns(const float* __restrict__ row, int64_t column, int64_t d, bool aligned) {
  if (aligned) return *reinterpret_cast<const float4*>(row + column);
  float4 x;
  x.x = row[column];
  x.y = column + 1 < d ? row[column + 1] : 0.0f;
  x.z = column + 2 < d ? row[column + 2] : 0.0f;
  x.w = column + 3 < d ? row[column + 3] : 0.0f;
  return x;
}

// The last folds of canonical/dot.h, 64 to 1, over the four partial sums of every lane. Every lane gets the result:
// addition commutes, so lanes that look at each other add the same two numbers.
__device__ __forceinline__ double fold_warp(double (&sums)[kPerLane]) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    for (int c = 0; c < kPerLane; ++c) sums[c] += __shfl_xor_sync(kAllLanes, sums[c], step);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// dots[r] = x . rows[r] in the order of canonical/dot.h, the same in every lane; the whole warp takes part.
template <int kRows>
__device__ __forceinline__ void warp_dots(const float* __restrict__ x, const float* const (&rows)[kRows], int64_t d,
                                          bool aligned, double (&dots)[kRows]) {
  double sums[kRows][kPerLane] = {};
  for (int64_t column = static_cast<int64_t>(lane_index()) * kPerLane; column < d; column += kDotLanes) {
    const float4 a = load_columns(x, column, d, aligned);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float4 b = load_columns(rows[r], column, d, aligned);
      sums[r][0] = fma(static_cast<double>(a.x), static_cast<double>(b.x), sums[r][0]);
      sums[r][1] = fma(static_cast<double>(a.y), static_cast<double>(b.y), sums[r][1]);
      sums[r][2] = fma(static_cast<double>(a.z), static_cast<double>(b.z), sums[r][2]);
      sums[r][3] = fma(static_cast<double>(a.w), static_cast<double>(b.w), sums[r][3]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) dots[r] = fold_warp(sums[r]);
}

}  // namespace dmic
