// What dbscan asks of the values of a distance: neither negative nor NaN, and symmetric.
#pragma once

#include <algorithm>
#include <atomic>

#include "../canonical/pair_hash.h"
#include "../ops/checks.h"
#include "parallel.h"

namespace dmic {

constexpr int64_t kRowsPerDistanceCheck = 4096;

// The structure is sound: row_ptr leads from 0 to the number of values, columns ascend in [0, rows).
struct Distances {
  const int64_t* row_ptr;
  const int32_t* col_idx;
  const float* values;
  int64_t rows;
};

// Raises with the first entry whose mirror image is not the same.
inline void raise_asymmetry(Progress& progress, const Distances& in) {
  for (int64_t i = 0; i < in.rows && !progress.stopped(); ++i) {
    for (int64_t t = in.row_ptr[i]; t < in.row_ptr[i + 1]; ++t) {
      const int64_t j = in.col_idx[t];
      const int32_t* begin = in.col_idx + in.row_ptr[j];
      const int32_t* end = in.col_idx + in.row_ptr[j + 1];
      const int32_t* found = std::lower_bound(begin, end, static_cast<int32_t>(i));
      DMIC_CHECK(found != end && *found == i, "dbscan: distance must be symmetric, got ", in.values[t], " at [", i, ", ", j,
                 "] and nothing at [", j, ", ", i, "]");
      const float other = in.values[found - in.col_idx];
      DMIC_CHECK(other == in.values[t],
                 "dbscan: distance must be symmetric, got ", in.values[t], " at [", i, ", ", j, "] and ", other, " at [", j,
                 ", ", i, "]");
    }
    progress.poll();
  }
  progress.check();
}

inline void check_distances(Progress& progress, const Distances& in) {
  std::atomic<uint64_t> balance{0};
  for_each_chunk(progress, in.rows, kRowsPerDistanceCheck, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t t = in.row_ptr[i]; t < in.row_ptr[i + 1]; ++t) {
        const int64_t j = in.col_idx[t];
        DMIC_CHECK(in.values[t] >= 0.0f, "dbscan: distances must not be negative or NaN, got ", in.values[t], " at [", i,
                   ", ", j, "]");
        sum += balanced_hash(i, j, in.values[t]);
      }
    balance += sum;
  });
  progress.check();
  if (balance != 0) raise_asymmetry(progress, in);
}

}  // namespace dmic
