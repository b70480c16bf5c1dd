// float32 to float16, round to nearest even, and back: by integer arithmetic, the same on every device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "annotate.h"

namespace dmic {

DMIC_HOST_DEVICE inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

DMIC_HOST_DEVICE inline float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr float kMaxHalf = 65504.0f;  // the largest finite float16

// |x| must be below 65520, the first value that rounds to infinity.
DMIC_HOST_DEVICE inline uint16_t half_from_float(float x) {
  const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude < 0x38800000u) {  // below 2^-14: a float16 denormal, in units of 2^-24
    // Adding 2^-1 leaves exactly 24 - 1 bits below it: the hardware rounds to a multiple of 2^-24, ties to even.
    const float shifted = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

DMIC_HOST_DEVICE inline float float_from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude < 0x400u) {  // a denormal: an integer number of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return bits_float(float_bits(value) | sign);
  }
  return bits_float(sign | ((magnitude << 13) + 0x38000000u));
}

// sqrt(sum_sq) rounded up to float32: a bound, never below the true value.
DMIC_HOST_DEVICE inline float norm_above(double sum_sq) {
  const double bound = sqrt(sum_sq) * (1.0 + 0x1p-40);  // covers the roundings of the sum of up to 2^20 terms, and of the root
  const float rounded = static_cast<float>(bound);
  return rounded < bound ? bits_float(float_bits(rounded) + 1) : rounded;
}

}  // namespace dmic
