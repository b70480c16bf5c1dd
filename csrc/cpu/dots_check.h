// What k_reciprocal_weights asks of its dot products.
#pragma once

#include <cmath>

#include "../canonical/fixed_point.h"
#include "../ops/checks.h"
#include "parallel.h"

namespace dmic {

constexpr int64_t kRowsPerDotsCheck = 4096;

// Rows that can be weighed; row_ptr is sound.
inline void check_dots(Progress& progress, const char* op, const int64_t* row_ptr, int64_t rows, const double* dots) {
  for_each_chunk(progress, rows, kRowsPerDotsCheck, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t count = row_ptr[i + 1] - row_ptr[i];
      DMIC_CHECK(count <= kOne, op, ": a row must have at most 2^30 dots, got ", count, " in row ", i);
      for (int64_t t = row_ptr[i]; t < row_ptr[i + 1]; ++t)
        DMIC_CHECK(std::abs(dots[t]) < kDotLimit, op, ": dots must be finite and below 2^1023 in magnitude, got ",
                   dots[t], " in row ", i);
    }
  });
}

}  // namespace dmic
