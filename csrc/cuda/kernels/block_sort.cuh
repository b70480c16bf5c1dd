// Sorting with all threads of a block, in shared or in global memory.
#pragma once

#include "../compat/cuda_compat.h"

namespace dmic {

// Sorts keys [0, count) ascending, count < 2^31: a bitonic network in which every comparator puts the smaller key at the
// lower index, so that keys beyond the end, taken as infinite, never move and any count will do. All threads call it with
// the same arguments; there is a barrier before the first access and one after the last.
// Cost: about count log2(count)^2 / 4 comparisons.
template <class Key>
__device__ __forceinline__ void block_sort(Key* keys, uint32_t count) {
  const auto put_in_order = [&](uint32_t low, uint32_t high) {
    if (high >= count) return;
    const Key a = keys[low], b = keys[high];
    if (!(b < a)) return;
    keys[low] = b;
    keys[high] = a;
  };
  __syncthreads();
  for (int level = 0; count > 1u << level; ++level) {  // sorted runs of 2^level become runs of 2^(level + 1)
    const uint32_t half = 1u << level, pairs = ((count - 1) / 2 / half + 1) * half;
    for (uint32_t pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
      const uint32_t run = (pair >> level) << (level + 1), offset = pair & (half - 1);
      put_in_order(run + offset, run + 2 * half - 1 - offset);
    }
    __syncthreads();
    for (int step = level - 1; step >= 0; --step) {
      const uint32_t stride = 1u << step;
      for (uint32_t pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
        const uint32_t low = (pair >> step) << (step + 1) | (pair & (stride - 1));
        put_in_order(low, low + stride);
      }
      __syncthreads();
    }
  }
}

}  // namespace dmic
