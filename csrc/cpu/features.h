// What several ops need from a feature matrix: a finiteness check and canonical norms, in parallel.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "../canonical/dot.h"
#include "../ops/checks.h"
#include "parallel.h"
#include "simd.h"

namespace dmic {

constexpr int64_t kRowsPerCheck = 64;

// Raises with the first non-finite value.
inline void check_finite(Progress& progress, const char* op, const float* features, int64_t rows, int64_t d,
                         const char* name = "features") {
  for_each_chunk(progress, rows, kRowsPerCheck, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = features + i * d;
      uint32_t largest = 0;  // exponent bits all set: infinite or NaN
      for (int64_t k = 0; k < d; ++k) {
        uint32_t bits;
        std::memcpy(&bits, row + k, sizeof bits);
        largest = std::max(largest, bits & 0x7fffffffu);
      }
      if (largest < 0x7f800000u) continue;
      for (int64_t k = 0; k < d; ++k)
        DMIC_CHECK(std::isfinite(row[k]), op, ": ", name, " must be finite, got ", row[k], " at row ", i, ", column ",
                   k);
    }
  });
}

// norms[i] = |x_i|^2 in the canonical order.
inline void canonical_norms(Progress& progress, const float* features, int64_t rows, int64_t d, double* norms) {
  const SimdKernels& kernels = simd();
  for_each_chunk(
      progress, rows, kRowsPerCheck, [&] { return std::vector<double>(d + kDotLanes); },
      [&](int64_t begin, int64_t end, std::vector<double>& wide) {
        const int32_t self = 0;
        for (int64_t i = begin; i < end; ++i)
          kernels.dots(features + i * d, features + i * d, d, &self, 1, wide.data(), norms + i);
      });
}

}  // namespace dmic
