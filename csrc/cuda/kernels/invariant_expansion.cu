#include "invariant_expansion.cuh"

#include "../../canonical/fixed_point.h"
#include "../compat/device_ops.h"
#include "block_sort.cuh"
#include "share_row.cuh"
#include "warp.cuh"

namespace dmic {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int64_t kBlocksPerMultiprocessor = 16;
constexpr int32_t kNoColumn = -1;

// Numerators of the nested means: over the members of a camera, over the cameras of a modality, over modalities.
// Mapping:  one warp per row; lane t weighs members t, t + 32, ... and compares each with all members.
// Reads:    the list of the row, and for each member the ends of its row and its ids, again and again from L1.
// Writes:   numerators [rows, k2], totals and bounds [rows], once; camera_mask, written and read once.
// Limits:   1 <= k2 <= k1, indices in the encoding; last_row - first_row < 2^31; the caller checks.
// Cost:     2 rows k2^2 compares of ids, a 32nd of it for each lane; bound by the latency of L1.
__global__ void weigh_neighbors_kernel(const int64_t* __restrict__ row_ptr, const int32_t* __restrict__ neighbor_idx,
                                       int64_t num_cols, int64_t first_row, int64_t last_row, int64_t k1, int64_t k2,
                                       const int64_t* __restrict__ camera_ids,
                                       const int64_t* __restrict__ modality_ids, uint32_t* camera_mask,
                                       unsigned long long* numerators, unsigned long long* __restrict__ totals,
                                       int64_t* __restrict__ bounds) {
  const int lane = lane_index();
  const int64_t row = first_row + static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= last_row) return;  // whole warps leave together
  const int32_t* list = neighbor_idx + row * k1;
  uint32_t* opens_camera = camera_mask + row * ((k2 + kWarp - 1) / kWarp);
  unsigned long long* weights = numerators + row * k2;
  const auto length = [&](int32_t j) { return row_ptr[j + 1] - row_ptr[j]; };
  const auto same_modality = [&](int32_t p, int32_t q) { return !modality_ids || modality_ids[p] == modality_ids[q]; };
  const auto same_camera = [&](int32_t p, int32_t q) {
    return same_modality(p, q) && (!camera_ids || camera_ids[p] == camera_ids[q]);
  };

  uint32_t modalities = 0;
  for (int64_t base = 0; base < k2; base += kWarp) {
    const int64_t t = base + lane;
    const int32_t j = list[min(t, k2 - 1)];
    const bool counts = t < k2 && length(j) > 0;
    bool first_of_modality = counts, first_of_camera = counts;
    uint32_t alike = 0;
    for (int64_t s = 0; s < k2; ++s) {
      const int32_t other = list[s];
      if (length(other) == 0) continue;
      alike += same_camera(j, other);
      if (s >= t) continue;
      first_of_modality &= !same_modality(j, other);
      first_of_camera &= !same_camera(j, other);
    }
    modalities += __popc(__ballot_sync(kAllLanes, first_of_modality));
    const unsigned votes = __ballot_sync(kAllLanes, first_of_camera);
    if (lane == 0) opens_camera[base / kWarp] = votes;
    if (t < k2) weights[t] = counts ? alike : 0;
  }
  __syncwarp();

  unsigned long long total = 0;
  int64_t columns = 0;
  for (int64_t t = lane; t < k2; t += kWarp) {
    if (weights[t] == 0) continue;
    const int32_t j = list[t];
    uint32_t cameras = 0;
    for (int64_t s = 0; s < k2; ++s)
      cameras += (opens_camera[s / kWarp] >> (s % kWarp) & 1) && same_modality(j, list[s]);
    weights[t] = share_numerator(modalities, cameras, weights[t]);
    total += weights[t];
    columns += length(j);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    total += __shfl_xor_sync(kAllLanes, total, step);
    columns += __shfl_xor_sync(kAllLanes, columns, step);
  }
  if (lane != 0) return;
  totals[row] = total;
  bounds[row] = min(columns, num_cols);
}

// What a row of the expansion is made of.
struct Expansion {
  const int64_t* row_ptr;
  const int32_t* col_idx;
  const int32_t* values;
  const int32_t* neighbor_idx;
  int64_t k1, k2;
  const unsigned long long* numerators;
  const unsigned long long* totals;
  const int64_t* bounds;
};

// Sums by column: open addressing, linear probing. Some slot is always free, so every search ends.
struct ColumnTable {
  __device__ void clear(int64_t slot) {
    columns[slot] = kNoColumn;
    sums[slot] = 0;
  }

  __device__ int64_t home_of(int32_t column) const {
    return static_cast<int64_t>(static_cast<uint64_t>(column) * 0x9e3779b97f4a7c15ull >> shift);
  }
  __device__ int64_t after(int64_t slot) const { return (slot + 1) & (slots - 1); }

  __device__ void add(int32_t column, unsigned long long value) {
    int64_t slot = home_of(column);
    for (;; slot = after(slot)) {
      int32_t held = load_relaxed(columns + slot);
      if (held == kNoColumn) held = atomicCAS(columns + slot, kNoColumn, column);
      if (held == kNoColumn || held == column) break;
    }
    atomicAdd(sums + slot, value);
  }

  __device__ unsigned long long sum_of(int32_t column) const {
    int64_t slot = home_of(column);
    while (columns[slot] != column) slot = after(slot);
    return sums[slot];
  }

  unsigned long long* sums;
  int32_t* columns;
  int64_t slots;  // a power of two
  int shift;      // 64 - log2(slots)
};

// Sums the encodings of the members of each row, weighted, in a table of columns; divides, and drops what is zero.
// Mapping:  persistent; one block per row, a warp per member, lane t takes entries t, t + 32, ... of its row. The table
//           is in shared memory or, for rows with more columns, in global scratch of the block.
// Reads:    the rows of the members, coalesced, mostly from L2.
// Writes:   lengths [rows], or col_idx_out and values_out, once, coalesced.
// Limits:   bounds at least the columns of a row, which are at most 2^30; rows whose table belongs elsewhere are left
//           to the other kind of launch.
// Cost:     rows k2 |S| atomics of 64 bits in shared memory, which limit the count; about m log2(m)^2 / 4 compares to
//           sort the m columns of a row, which limit the fill.
template <bool kInShared, bool kFill>
__global__ void merge_neighbors_kernel(Expansion in, int64_t first_row, int64_t last_row, int64_t shared_slots,
                                       unsigned char* tables, int64_t slots_of_table, int32_t* __restrict__ lengths,
                                       const int64_t* __restrict__ row_ptr_out, int32_t* __restrict__ col_idx_out,
                                       int32_t* values_out) {
  __shared__ uint32_t num_columns;
  __shared__ int32_t sum;
  __shared__ unsigned long long largest;
  const int64_t table_capacity = kInShared ? shared_slots : slots_of_table;
  unsigned char* memory =
      kInShared ? dynamic_shared<unsigned char>() : tables + blockIdx.x * table_capacity * kSlotBytes;
  ColumnTable table;
  table.sums = reinterpret_cast<unsigned long long*>(memory);
  table.columns = reinterpret_cast<int32_t*>(table.sums + table_capacity);
  int32_t* found = table.columns + table_capacity;

  for (int64_t row = first_row + blockIdx.x; row < last_row; row += gridDim.x) {
    const unsigned long long total = in.totals[row];
    table.slots = table_slots(in.bounds[row]);
    if ((table.slots <= shared_slots) != kInShared) continue;
    if (total == 0) {  // no member counts
      if (!kFill && threadIdx.x == 0) lengths[row] = 0;
      continue;
    }
    table.shift = __clzll(table.slots) + 1;
    for (int64_t slot = threadIdx.x; slot < table.slots; slot += blockDim.x) table.clear(slot);
    if (threadIdx.x == 0) {
      num_columns = 0;
      sum = 0;
      largest = 0;
    }
    __syncthreads();

    for (int64_t t = warp_index(); t < in.k2; t += blockDim.x / kWarp) {
      const unsigned long long numerator = in.numerators[row * in.k2 + t];
      if (numerator == 0) continue;
      const int32_t j = in.neighbor_idx[row * in.k1 + t];
      for (int64_t p = in.row_ptr[j] + lane_index(); p < in.row_ptr[j + 1]; p += kWarp)
        table.add(in.col_idx[p], numerator * static_cast<unsigned long long>(in.values[p]));
    }
    __syncthreads();

    const double reciprocal = 1.0 / static_cast<double>(total);
    for (int64_t slot = threadIdx.x; slot < table.slots; slot += blockDim.x) {
      if (table.columns[slot] == kNoColumn || divide_share(table.sums[slot], total, reciprocal) == 0) continue;
      const uint32_t position = atomicAdd(&num_columns, 1u);
      if (kFill) found[position] = table.columns[slot];
    }
    __syncthreads();
    if (!kFill) {
      if (threadIdx.x == 0) lengths[row] = static_cast<int32_t>(num_columns);
      continue;
    }

    const uint32_t length = num_columns;
    block_sort(found, length);
    const int64_t out = row_ptr_out[row];
    ShareSummary summary;
    for (uint32_t t = threadIdx.x; t < length; t += blockDim.x) {
      const int32_t share = divide_share(table.sum_of(found[t]), total, reciprocal);
      col_idx_out[out + t] = found[t];
      values_out[out + t] = share;
      summary.add(share, t);
    }
    summary.fold();
    if (lane_index() == 0) {
      atomicAdd(&sum, summary.sum);
      atomicMax(&largest, summary.largest);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      summary.sum = sum;
      summary.largest = largest;
      values_out[out + summary.position()] += summary.rest();
    }
  }
}

}  // namespace
}  // namespace dmic

const char* dmic_launch_weigh_neighbors(const int64_t* row_ptr, const int32_t* neighbor_idx, int64_t num_cols,
                                        int64_t first_row, int64_t last_row, int64_t k1, int64_t k2,
                                        const int64_t* camera_ids, const int64_t* modality_ids, uint32_t* camera_mask,
                                        unsigned long long* numerators, unsigned long long* totals, int64_t* bounds,
                                        void* stream) {
  using namespace dmic;
  const int64_t blocks = (last_row - first_row + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return launch(weigh_neighbors_kernel, blocks, kWarpsPerBlock * kWarp, 0, static_cast<cudaStream_t>(stream), row_ptr,
                neighbor_idx, num_cols, first_row, last_row, k1, k2, camera_ids, modality_ids, camera_mask, numerators,
                totals, bounds);
}

int64_t dmic_merge_blocks() { return dmic::num_multiprocessors() * dmic::kBlocksPerMultiprocessor; }

const char* dmic_launch_merge_neighbors(const int64_t* row_ptr, const int32_t* col_idx, const int32_t* values,
                                        const int32_t* neighbor_idx, int64_t first_row, int64_t last_row, int64_t k1,
                                        int64_t k2, const unsigned long long* numerators,
                                        const unsigned long long* totals, const int64_t* bounds, int64_t shared_slots,
                                        void* tables, int64_t blocks, int threads, int64_t slots_of_table,
                                        int32_t* lengths, const int64_t* row_ptr_out, int32_t* col_idx_out,
                                        int32_t* values_out, void* stream) {
  using namespace dmic;
  const auto in_shared = row_ptr_out ? merge_neighbors_kernel<true, true> : merge_neighbors_kernel<true, false>;
  const auto in_global = row_ptr_out ? merge_neighbors_kernel<false, true> : merge_neighbors_kernel<false, false>;
  const size_t shared_bytes = tables ? 0 : static_cast<size_t>(shared_slots * kSlotBytes);
  return launch(tables ? in_global : in_shared, blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream),
                Expansion{row_ptr, col_idx, values, neighbor_idx, k1, k2, numerators, totals, bounds}, first_row,
                last_row, shared_slots, static_cast<unsigned char*>(tables), slots_of_table, lengths, row_ptr_out,
                col_idx_out, values_out);
}
