#include "round_features.cuh"

#include "../../canonical/dot.h"
#include "../../canonical/half.h"
#include "../compat/cuda_compat.h"

namespace dmic {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kPerLane = kDotLanes / kWarp;  // consecutive columns of a lane: one 16-byte load
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kMaxHalf = 65504.0f;
static_assert(kPerLane == 4, "the fold below works on four partial sums a lane");

// Rounds features * 2^exponent to float16 and bounds what the rounding of each row lost.
// Mapping:  one warp per row; lane t holds columns 4 t .. 4 t + 3 of every 128.
// Reads:    features [rows, d] float32, once, coalesced (16 bytes a lane where every row is aligned to them).
// Writes:   rounded [rows, d] float16 and residual_norm [rows] float32, once; bad_row by atomicMin, rare.
// Limits:   rows < 2^31, 1 <= blocks <= 2^31 - 1; the caller checks.
// Cost:     6 rows d bytes of memory traffic and rows d float64 multiply-adds; memory-bound.
__global__ void round_features_kernel(const float* __restrict__ features, int64_t rows, int64_t d, double power,
                                      uint16_t* __restrict__ rounded, float* __restrict__ residual_norm,
                                      unsigned long long* __restrict__ bad_row) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;  // whole warps leave together
  const float* in = features + row * d;
  uint16_t* out = rounded + row * d;
  double sums[kPerLane] = {0.0, 0.0, 0.0, 0.0};
  bool bad = false;
  const bool aligned = d % kPerLane == 0 && reinterpret_cast<uintptr_t>(features) % sizeof(float4) == 0;
  for (int64_t base = static_cast<int64_t>(lane) * kPerLane; base < d; base += kDotLanes) {
    float x[kPerLane];
    const int width = d - base < kPerLane ? static_cast<int>(d - base) : kPerLane;
    if (aligned) {
      const float4 loaded = *reinterpret_cast<const float4*>(in + base);
      x[0] = loaded.x, x[1] = loaded.y, x[2] = loaded.z, x[3] = loaded.w;
    } else {
      for (int c = 0; c < kPerLane; ++c) x[c] = c < width ? in[base + c] : 0.0f;
    }
    for (int c = 0; c < kPerLane; ++c) {
      if (c >= width) break;
      const double scaled = static_cast<double>(x[c]) * power;
      bad |= !(fabs(scaled) <= kMaxHalf);
      const uint16_t half = half_from_float(static_cast<float>(scaled));
      const double residual = scaled - static_cast<double>(float_from_half(half));
      out[base + c] = half;
      sums[c] = fma(residual, residual, sums[c]);
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2)  // folds 64, 32, 16, 8 and 4 of canonical/dot.h
    for (int c = 0; c < kPerLane; ++c) sums[c] += __shfl_down_sync(kAllLanes, sums[c], step);
  const double sum_sq = (sums[0] + sums[2]) + (sums[1] + sums[3]);
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
