#include "dbscan.cuh"

#include "../../canonical/pair_hash.h"
#include "../compat/device_ops.h"
#include "warp.cuh"

namespace dmic {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarpsPerBlock * kWarp;
constexpr int64_t kBlocksPerMultiprocessor = 8;
constexpr int64_t kNoise = -1;  // as in ops/dbscan.h
constexpr unsigned kNoCluster = 0xffffffffu;

// Decides which samples are core, makes each its own root, and checks values and symmetry on the way.
// Mapping:  one warp per row, and on to the row as many further as there are warps; a lane takes every 32nd entry.
// Reads:    row_ptr [rows + 1] int64, col_idx [nnz] int32, values [nnz] float32, once, coalesced.
// Writes:   core [rows] bool, parent [rows] int32; balance by one atomicAdd a warp; bad_values by atomicAdd, rare.
// Limits:   rows < 2^31; the caller checks.
// Cost:     8 nnz bytes, 2 hashes an entry of 2 64-bit multiplications each; memory-bound.
__global__ void dbscan_core_kernel(const int64_t* __restrict__ row_ptr, int64_t rows,
                                   const int32_t* __restrict__ col_idx, const float* __restrict__ values, float eps,
                                   int64_t min_samples, bool* __restrict__ core, int32_t* __restrict__ parent,
                                   unsigned long long* __restrict__ bad_values,
                                   unsigned long long* __restrict__ balance) {
  const int lane = lane_index();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  unsigned long long sum = 0;
  bool bad = false;
  for (int64_t row = first; row < rows; row += static_cast<int64_t>(gridDim.x) * kWarpsPerBlock) {
    const int64_t end = row_ptr[row + 1];
    unsigned near = 0;
    for (int64_t t = row_ptr[row] + lane; t < end; t += kWarp) {
      const int32_t j = col_idx[t];
      const float value = values[t];
      bad |= !(value >= 0.0f);
      sum += balanced_hash(row, j, value);
      near += value <= eps && j != row;
    }
    const int64_t degree = int64_t{1} + __reduce_add_sync(kAllLanes, near);  // the sample itself, stored or not
    if (lane == 0) {
      core[row] = degree >= min_samples;
      parent[row] = static_cast<int32_t>(row);
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane == 0 && sum != 0) atomicAdd(balance, sum);
  if (bad) atomicAdd(bad_values, 1ull);
}

// The root of i. A parent is never above its child, and what path halving writes is an ancestor: whatever other threads do
// at the same time, every value that is read leads to the root.
__device__ int32_t find_root(int32_t* parent, int32_t i) {
  for (;;) {
    const int32_t up = load_relaxed(parent + i), above = load_relaxed(parent + up);
    if (up == above) return up;
    atomicMin(parent + i, above);
    i = above;
  }
}

// Joins the core samples within eps of each other by hooking roots under lower ones.
// Mapping:  one warp per row; a lane takes every 32nd entry left of the diagonal.
// Reads:    row_ptr, col_idx, values, once, coalesced; core [rows] bool, at random.
// Writes:   parent [rows] int32 by atomicCAS and atomicMin, at random.
// Limits:   rows < 2^31; the caller checks. Its trees depend on timing, its clusters and roots do not.
// Cost:     8 nnz bytes, two searches for roots for each near pair; bound by the latency of the searches.
__global__ void dbscan_join_kernel(const int64_t* __restrict__ row_ptr, int64_t rows,
                                   const int32_t* __restrict__ col_idx, const float* __restrict__ values, float eps,
                                   const bool* __restrict__ core, int32_t* parent) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= rows || !core[row]) return;
  const int64_t end = row_ptr[row + 1];
  for (int64_t t = row_ptr[row] + lane_index(); t < end; t += kWarp) {
    const int32_t j = col_idx[t];
    if (j >= row) break;  // columns ascend
    if (!(values[t] <= eps) || !core[j]) continue;
    int32_t a = find_root(parent, static_cast<int32_t>(row)), b = find_root(parent, j);
    while (a != b) {
      const int32_t high = a < b ? b : a, low = a < b ? a : b;
      a = atomicCAS(parent + high, high, low);
      if (a == high) break;
      b = low;  // `high` was hooked meanwhile, under a: join a and low instead
    }
  }
}

// Makes every parent the root, and marks the roots of clusters.
// Mapping:  one thread per row.
// Reads:    core [rows] bool, coalesced; parent [rows] int32, at random.
// Writes:   parent [rows] by atomicMin, is_first [rows] int32, coalesced.
// Limits:   rows < 2^31; the caller checks.
// Cost:     13 rows bytes; bound by the latency of the searches, which halve the paths of each other.
__global__ void dbscan_flatten_kernel(int64_t rows, const bool* __restrict__ core, int32_t* parent,
                                      int32_t* __restrict__ is_first) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const int32_t root = find_root(parent, static_cast<int32_t>(row));
  if (root != row) atomicMin(parent + row, root);
  is_first[row] = core[row] && root == row;
}

// Labels every sample: a core sample with the number of its cluster, others with the lowest number of a cluster that has
// a core sample within eps, or as noise.
// Mapping:  one warp per row; a lane takes every 32nd entry of a sample that is not core.
// Reads:    row_ptr, col_idx, values, once, coalesced; core [rows], parent [rows], cluster_of [rows + 1] int64, at random.
// Writes:   labels [rows] int64.
// Limits:   rows < 2^31; the caller checks.
// Cost:     8 bytes for each entry of samples that are not core, 20 rows bytes; memory-bound.
__global__ void dbscan_label_kernel(const int64_t* __restrict__ row_ptr, int64_t rows,
                                    const int32_t* __restrict__ col_idx, const float* __restrict__ values, float eps,
                                    const bool* __restrict__ core, const int32_t* __restrict__ parent,
                                    const int64_t* __restrict__ cluster_of, int64_t* __restrict__ labels) {
  const int lane = lane_index();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= rows) return;  // whole warps leave together
  if (core[row]) {
    if (lane == 0) labels[row] = cluster_of[parent[row]];
    return;
  }
  const int64_t end = row_ptr[row + 1];
  unsigned lowest = kNoCluster;
  for (int64_t t = row_ptr[row] + lane; t < end; t += kWarp) {
    const int32_t j = col_idx[t];
    if (!(values[t] <= eps) || !core[j]) continue;
    const unsigned cluster = static_cast<unsigned>(cluster_of[parent[j]]);
    lowest = cluster < lowest ? cluster : lowest;
  }
  lowest = __reduce_min_sync(kAllLanes, lowest);
  if (lane == 0) labels[row] = lowest == kNoCluster ? kNoise : static_cast<int64_t>(lowest);
}

}  // namespace
}  // namespace dmic

const char* dmic_launch_dbscan_core(const int64_t* row_ptr, int64_t rows, const int32_t* col_idx, const float* values,
                                    float eps, int64_t min_samples, bool* core, int32_t* parent,
                                    unsigned long long* bad_values, unsigned long long* balance, void* stream) {
  using namespace dmic;
  const int64_t needed = blocks_for(rows, kWarpsPerBlock), most = num_multiprocessors() * kBlocksPerMultiprocessor;
  return launch(dbscan_core_kernel, needed < most ? needed : most, kThreads, 0, static_cast<cudaStream_t>(stream),
                row_ptr, rows, col_idx, values, eps, min_samples, core, parent, bad_values, balance);
}

const char* dmic_launch_dbscan_join(const int64_t* row_ptr, int64_t rows, const int32_t* col_idx, const float* values,
                                    float eps, const bool* core, int32_t* parent, void* stream) {
  using namespace dmic;
  return launch(dbscan_join_kernel, blocks_for(rows, kWarpsPerBlock), kThreads, 0, static_cast<cudaStream_t>(stream),
                row_ptr, rows, col_idx, values, eps, core, parent);
}

const char* dmic_launch_dbscan_flatten(int64_t rows, const bool* core, int32_t* parent, int32_t* is_first,
                                       void* stream) {
  using namespace dmic;
  return launch(dbscan_flatten_kernel, blocks_for(rows, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream), rows,
                core, parent, is_first);
}

const char* dmic_launch_dbscan_label(const int64_t* row_ptr, int64_t rows, const int32_t* col_idx, const float* values,
                                     float eps, const bool* core, const int32_t* parent, const int64_t* cluster_of,
                                     int64_t* labels, void* stream) {
  using namespace dmic;
  return launch(dbscan_label_kernel, blocks_for(rows, kWarpsPerBlock), kThreads, 0, static_cast<cudaStream_t>(stream),
                row_ptr, rows, col_idx, values, eps, core, parent, cluster_of, labels);
}
