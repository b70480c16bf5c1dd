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

// Raises with the first non-finite value, whatever the number of threads.
inline void check_finite(const char* op, const float* features, int64_t rows, int64_t d) {
  std::atomic<int64_t> first_bad{rows};
  torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && i < first_bad.load(std::memory_order_relaxed); ++i) {
      uint32_t largest = 0;  // exponent bits all set: infinite or NaN
      for (int64_t k = 0; k < d; ++k) {
        uint32_t bits;
        std::memcpy(&bits, features + i * d + k, sizeof bits);
        largest = std::max(largest, bits & 0x7fffffffu);
      }
      if (largest < 0x7f800000u) continue;
      for (int64_t seen = first_bad.load(); i < seen && !first_bad.compare_exchange_weak(seen, i);) {
      }
    }
  });
  if (first_bad == rows) return;
  const float* row = features + first_bad * d;
  for (int64_t k = 0; k < d; ++k)
    DMIC_CHECK(std::isfinite(row[k]), op, ": features must be finite, got ", row[k], " at row ", first_bad.load(),
               ", column ", k);
}

// norms[i] = |x_i|^2 in the canonical order.
inline void canonical_norms(Progress& progress, const float* features, int64_t rows, int64_t d, double* norms) {
  const SimdKernels& kernels = simd();
  const int64_t chunk = 256, chunks = (rows + chunk - 1) / chunk;
  std::vector<std::vector<double>> wide(num_workers(chunks));
  for_each_item(progress, chunks, [&](int64_t item, int worker) {
    wide[worker].resize(d + kDotLanes);
    const int32_t self = 0;
    for (int64_t i = item * chunk; i < std::min(rows, (item + 1) * chunk); ++i)
      kernels.dots(features + i * d, features + i * d, d, &self, 1, wide[worker].data(), norms + i);
  });
}

}  // namespace dmic
