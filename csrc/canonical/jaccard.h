// Jaccard distance of two encodings from their integer overlap s = sum of min, in units of 2^-30.
#pragma once

#include <cstdint>

#include "annotate.h"
#include "fixed_point.h"

namespace dmic {

// J = 1 - s / (2 - s) = (2 - 2 s) / (2 - s): one correctly rounded division of integers, so J never rises with s.
DMIC_HOST_DEVICE inline float jaccard_from_overlap(int32_t overlap) {
  const int64_t two = 2ll * kOne;
  return static_cast<float>(static_cast<double>(two - 2ll * overlap) / static_cast<double>(two - overlap));
}

// Smallest overlap in [1, 2^30] with J <= max_distance, for max_distance >= 0.
DMIC_HOST_DEVICE inline int32_t smallest_overlap_within(float max_distance) {
  int32_t low = 1, high = kOne;  // J(2^30) = 0
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (jaccard_from_overlap(middle) <= max_distance) high = middle;
    else low = middle + 1;
  }
  return low;
}

}  // namespace dmic
