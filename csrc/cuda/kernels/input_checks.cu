#include "input_checks.cuh"

#include "../../canonical/fixed_point.h"
#include "warp.cuh"

namespace dmic {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarpsPerBlock * kWarp;
constexpr int64_t kBlocksPerMultiprocessor = 8;
constexpr float kMaxFloat = 3.402823466e+38f;

// Finds out whether any number is infinite or NaN.
// Mapping:  thread t takes numbers 4 t .. 4 t + 3 of every 4 gridDim blockDim.
// Reads:    features [count] float32, once, coalesced (16 bytes a thread where address and count are aligned to them).
// Writes:   wrong by atomicOr, once a thread at most.
// Limits:   count >= 1; the caller checks.
// Cost:     4 count bytes and count comparisons; memory-bound.
__global__ void check_finite_kernel(const float* __restrict__ features, int64_t count,
                                    unsigned long long* __restrict__ wrong) {
  const bool aligned = rows_are_aligned(features, count);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kPerLane;
  bool bad = false;
  for (int64_t at = first * kPerLane; at < count; at += step) {
    const float4 x = load_columns(features, at, count, aligned);
    bad |= !(fabsf(x.x) <= kMaxFloat) || !(fabsf(x.y) <= kMaxFloat) || !(fabsf(x.z) <= kMaxFloat) ||
           !(fabsf(x.w) <= kMaxFloat);
  }
  if (bad) atomicOr(wrong, 1ull);
}

// Finds out whether any index is out of range, or occurs twice in its row of [first_row, last_row).
// Mapping:  one warp per row; a lane takes every 32nd entry and compares it with all entries before it.
// Reads:    neighbor_idx [rows, k] int32, once from global memory, distinct / 2 times from the cache.
// Writes:   wrong by atomicOr, once a thread at most.
// Limits:   rows < 2^31, 0 <= distinct <= k; the caller checks.
// Cost:     4 rows k bytes, rows distinct^2 / 2 comparisons; bound by the cache for distinct above 30 or so.
__global__ void check_neighbors_kernel(const int32_t* __restrict__ neighbor_idx, int64_t rows, int64_t k,
                                       int64_t samples, int64_t distinct, int64_t first_row, int64_t last_row,
                                       unsigned long long* __restrict__ wrong) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= rows) return;
  if (row < first_row || row >= last_row) distinct = 0;
  const int32_t* list = neighbor_idx + row * k;
  bool bad = false;
  for (int64_t t = lane_index(); t < k; t += kWarp) {
    const int32_t j = list[t];
    bad |= j < 0 || j >= samples;
    if (t >= distinct) continue;
    for (int64_t s = 0; s < t; ++s) bad |= list[s] == j;
  }
  if (bad) atomicOr(wrong, 1ull);
}

// Finds out whether row_ptr does not lead from 0 to nnz, or decreases.
// Mapping:  one thread per row; thread 0 also takes both ends.
// Reads:    row_ptr [rows + 1] int64, coalesced.
// Writes:   wrong by atomicOr, once a thread at most.
// Limits:   rows < 2^31; the caller checks.
// Cost:     8 rows bytes; memory-bound.
__global__ void check_row_ptr_kernel(const int64_t* __restrict__ row_ptr, int64_t rows, int64_t nnz,
                                     unsigned long long* __restrict__ wrong) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  bool bad = row < rows && row_ptr[row] > row_ptr[row + 1];
  if (row == 0) bad |= row_ptr[0] != 0 || row_ptr[rows] != nnz;
  if (bad) atomicOr(wrong, 1ull);
}

// Finds out whether the columns of any row do not ascend in [0, num_cols), or, of an encoding, its values are not
// positive or do not sum to 2^30.
// Mapping:  one warp per row; a lane takes every 32nd entry.
// Reads:    row_ptr [rows + 1] int64, col_idx [nnz] int32 and values [nnz] int32 unless null, once, coalesced.
// Writes:   wrong by atomicOr, once a thread at most.
// Limits:   rows < 2^31, row_ptr sound; the caller checks.
// Cost:     8 rows bytes, 4 or 8 nnz bytes; memory-bound.
__global__ void check_rows_kernel(const int64_t* __restrict__ row_ptr, int64_t rows, int64_t num_cols,
                                  const int32_t* __restrict__ col_idx, const int32_t* __restrict__ values,
                                  unsigned long long* __restrict__ wrong) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= rows) return;  // whole warps leave together
  const int64_t begin = row_ptr[row], end = row_ptr[row + 1];
  int64_t sum = 0;
  bool bad = false;
  for (int64_t t = begin + lane_index(); t < end; t += kWarp) {
    const int32_t j = col_idx[t];
    bad |= j < 0 || j >= num_cols || (t > begin && col_idx[t - 1] >= j);
    if (values) {
      bad |= values[t] <= 0;
      sum += values[t];
    }
  }
  if (values) {  // the same for the whole warp
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    bad |= begin < end && sum != kOne;
  }
  if (bad) atomicOr(wrong, 1ull);
}

}  // namespace
}  // namespace dmic

const char* dmic_launch_check_finite(const float* features, int64_t count, unsigned long long* wrong, void* stream) {
  using namespace dmic;
  const int64_t needed = blocks_for(count, int64_t{kThreads} * kPerLane);
  const int64_t most = num_multiprocessors() * kBlocksPerMultiprocessor;
  return launch(check_finite_kernel, needed < most ? needed : most, kThreads, 0, static_cast<cudaStream_t>(stream),
                features, count, wrong);
}

const char* dmic_launch_check_neighbors(const int32_t* neighbor_idx, int64_t rows, int64_t k, int64_t samples,
                                        int64_t distinct, int64_t first_row, int64_t last_row,
                                        unsigned long long* wrong, void* stream) {
  using namespace dmic;
  return launch(check_neighbors_kernel, blocks_for(rows, kWarpsPerBlock), kThreads, 0,
                static_cast<cudaStream_t>(stream), neighbor_idx, rows, k, samples, distinct, first_row, last_row,
                wrong);
}

const char* dmic_launch_check_row_ptr(const int64_t* row_ptr, int64_t rows, int64_t nnz, unsigned long long* wrong,
                                      void* stream) {
  using namespace dmic;
  return launch(check_row_ptr_kernel, blocks_for(rows > 0 ? rows : 1, kThreads), kThreads, 0,
                static_cast<cudaStream_t>(stream), row_ptr, rows, nnz, wrong);
}

const char* dmic_launch_check_rows(const int64_t* row_ptr, int64_t rows, int64_t num_cols, const int32_t* col_idx,
                                   const int32_t* values, unsigned long long* wrong, void* stream) {
  using namespace dmic;
  return launch(check_rows_kernel, blocks_for(rows, kWarpsPerBlock), kThreads, 0, static_cast<cudaStream_t>(stream),
                row_ptr, rows, num_cols, col_idx, values, wrong);
}
