#include "round_features.cuh"

#include "../../canonical/half.h"
#include "warp.cuh"

namespace dmic {
namespace {

constexpr int kWarpsPerBlock = 8;

// Rounds features * 2^exponent to float16 and bounds what the rounding of each row lost.
// Mapping:  one warp per row; lane t holds columns 4 t .. 4 t + 3 of every 128.
// Reads:    features [rows, d] float32, once, coalesced (16 bytes a lane where every row is aligned to them).
// Writes:   rounded [rows, d] float16 and residual_norm [rows] float32, once; bad_row by atomicMin, rare.
// Limits:   rows < 2^31, 1 <= blocks <= 2^31 - 1; the caller checks.
// Cost:     6 rows d bytes of memory traffic and rows d float64 multiply-adds; memory-bound.
__global__ void round_features_kernel(const float* __restrict__ features, int64_t rows, int64_t d, double power,
                                      uint16_t* __restrict__ rounded, float* __restrict__ residual_norm,
                                      unsigned long long* __restrict__ bad_row) {
  const int lane = lane_index();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= rows) return;  // whole warps leave together
  const float* in = features + row * d;
  uint16_t* out = rounded + row * d;
  double sums[kPerLane] = {0.0, 0.0, 0.0, 0.0};
  bool bad = false;
  const bool aligned = rows_are_aligned(features, d);
  for (int64_t base = static_cast<int64_t>(lane) * kPerLane; base < d; base += kDotLanes) {
    const float4 loaded = load_columns(in, base, d, aligned);
    const float x[kPerLane] = {loaded.x, loaded.y, loaded.z, loaded.w};
    for (int c = 0; c < kPerLane; ++c) {
      if (base + c >= d) break;
      const double scaled = static_cast<double>(x[c]) * power;
      bad |= !(fabs(scaled) <= kMaxHalf);
      const uint16_t half = half_from_float(static_cast<float>(scaled));
      const double residual = scaled - static_cast<double>(float_from_half(half));
      out[base + c] = half;
      sums[c] = fma(residual, residual, sums[c]);
    }
  }
  const double sum_sq = fold_warp(sums);
  if (lane == 0) residual_norm[row] = norm_above(sum_sq);
  if (__any_sync(kAllLanes, bad) && lane == 0) atomicMin(bad_row, static_cast<unsigned long long>(row));
}

}  // namespace
}  // namespace dmic

const char* dmic_launch_round_features(const float* features, int64_t rows, int64_t d, double power, uint16_t* rounded,
                                       float* residual_norm, unsigned long long* bad_row, void* stream) {
  using namespace dmic;
  const int64_t blocks = (rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return launch(round_features_kernel, blocks, kWarpsPerBlock * kWarp, 0, static_cast<cudaStream_t>(stream), features,
                rows, d, power, rounded, residual_norm, bad_row);
}
