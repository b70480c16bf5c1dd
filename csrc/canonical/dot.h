// The order of additions of a dot product, the same on every device.
//
// The product of two float32 is exact in float64, so a fused and an unfused multiply-add round alike and only
// the order of the additions defines the bits. Partial sum l adds elements l, l + 128, l + 256, ... in turn;
// the 128 partial sums are then folded in halves: 64, 32, 16, 8, 4, 2, 1. One AVX-512 register file holds them
// (16 x 8), and so do the 32 lanes of a warp that loads 16 bytes a lane (32 x 4). Elements past the end count
// as zero, which changes no sum.
#pragma once

#include <cstdint>

#include "annotate.h"

namespace dmic {

constexpr int kDotLanes = 128;

// Folds the partial sums in place; the result is sums[0].
DMIC_HOST_DEVICE inline double fold_dot_lanes(double* sums) {
  for (int half = kDotLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

// Squared Euclidean distance from |x|^2, |y|^2 and x.y: symmetric in x and y, exactly zero for equal rows.
DMIC_HOST_DEVICE inline double squared_distance(double norm_sq_x, double norm_sq_y, double dot) {
  const double distance = norm_sq_x + norm_sq_y - 2.0 * dot;
  return distance > 0.0 ? distance : 0.0;
}

}  // namespace dmic
