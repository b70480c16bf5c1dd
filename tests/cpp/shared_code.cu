#include "shared_code.cuh"

#include "../../csrc/cuda/kernels/block_sort.cuh"
#include "../../csrc/cuda/kernels/warp.cuh"

namespace dmic {
namespace {

constexpr int kDots = 3;

__global__ void block_sort_kernel(uint64_t* keys, uint32_t count, bool in_shared) {
  uint64_t* const held = in_shared ? dynamic_shared<uint64_t>() : keys;
  if (in_shared)
    for (uint32_t t = threadIdx.x; t < count; t += blockDim.x) held[t] = keys[t];
  block_sort(held, count);
  if (in_shared)
    for (uint32_t t = threadIdx.x; t < count; t += blockDim.x) keys[t] = held[t];
}

__global__ void warp_dots_kernel(const float* x, const float* features, int64_t rows, int64_t d, int lane,
                                 double* dots) {
  const int64_t i = blockIdx.x;
  const bool aligned = rows_are_aligned(features, d) && rows_are_aligned(x, d);
  const float* const others[kDots] = {features + i * d, features + (i + 1) % rows * d, features + (i + 2) % rows * d};
  double found[kDots];
  warp_dots<kDots>(x, others, d, aligned, found);
  if (lane_index() != lane) return;
  for (int r = 0; r < kDots; ++r) dots[i * kDots + r] = found[r];
}

}  // namespace
}  // namespace dmic

const char* launch_block_sort(uint64_t* keys, uint32_t count, int threads, bool in_shared) {
  return dmic::launch(dmic::block_sort_kernel, 1, threads, in_shared ? count * sizeof(uint64_t) : 0, nullptr, keys,
                      count, in_shared);
}

const char* launch_warp_dots(const float* x, const float* features, int64_t rows, int64_t d, int lane, double* dots) {
  return dmic::launch(dmic::warp_dots_kernel, rows, dmic::kWarp, 0, nullptr, x, features, rows, d, lane, dots);
}
