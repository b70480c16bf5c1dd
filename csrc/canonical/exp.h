// exp(t) for t <= 0 from additions and multiplications only, so that every device computes the same bits.
// Compile with contraction off (g++ -ffp-contract=off, nvcc -fmad=false). Error below 2^-50, flushed to 0 under -40.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "annotate.h"

namespace dmic {

constexpr double kLog2E = 0x1.71547652b82fep+0;
constexpr double kLn2Hi = 0x1.62e42fee00000p-1;   // n * kLn2Hi is exact for |n| < 2^11
constexpr double kLn2Lo = 0x1.a39ef35793c76p-33;
constexpr double kExpFlush = -40.0;               // exp(-40) is far below half a unit of 2^-32

DMIC_HOST_DEVICE inline double canonical_exp(double t) {
  if (t < kExpFlush) return 0.0;
  const double n = rint(t * kLog2E);
  const double r = (t - n * kLn2Hi) - n * kLn2Lo;
  double p = 1 / 6227020800.0;  // Taylor, degree 13, |r| <= ln(2) / 2
  p = p * r + 1 / 479001600.0;
  p = p * r + 1 / 39916800.0;
  p = p * r + 1 / 3628800.0;
  p = p * r + 1 / 362880.0;
  p = p * r + 1 / 40320.0;
  p = p * r + 1 / 5040.0;
  p = p * r + 1 / 720.0;
  p = p * r + 1 / 120.0;
  p = p * r + 1 / 24.0;
  p = p * r + 1 / 6.0;
  p = p * r + 1 / 2.0;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const int64_t bits = (static_cast<int64_t>(n) + 1023) << 52;  // 2^n, -58 <= n <= 0
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

}  // namespace dmic
