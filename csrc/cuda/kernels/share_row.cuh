// A row of an encoding in the making: what its shares lack of 2^30 goes to the largest of them, lowest column first.
#pragma once

#include "../../canonical/fixed_point.h"
#include "warp.cuh"

namespace dmic {

// The sum of the shares that a lane has seen, and the largest with its position; then of all the warp.
struct ShareSummary {
  __device__ void add(int32_t share, int64_t position) {
    raise(static_cast<unsigned long long>(share) << 32 | (0xffffffffu - static_cast<uint32_t>(position)));
    sum += share;
  }

  __device__ void raise(unsigned long long other) { largest = other > largest ? other : largest; }

  __device__ void fold() {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      raise(__shfl_xor_sync(kAllLanes, largest, step));
      sum += __shfl_xor_sync(kAllLanes, sum, step);
    }
  }

  __device__ int32_t rest() const { return kOne - sum; }
  __device__ int64_t position() const { return 0xffffffffu - static_cast<uint32_t>(largest); }

  unsigned long long largest = 0;  // the share above the complement of its position
  int32_t sum = 0;
};

}  // namespace dmic
