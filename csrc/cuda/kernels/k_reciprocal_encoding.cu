#include "k_reciprocal_encoding.cuh"

#include "../../canonical/fixed_point.h"
#include "block_sort.cuh"
#include "share_row.cuh"
#include "warp.cuh"

namespace dmic {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kDotsAtOnce = 4;  // one load of the row serves as many members
constexpr int64_t kExpandBlocksPerMultiprocessor = 8;
constexpr int kSortThreads = 64;
constexpr int64_t kSortBlocksPerMultiprocessor = 32;
static_assert(kMaskBits == kWarp, "a word of a mask has a bit for each lane");

__device__ __forceinline__ bool bit_of_lane(uint32_t word) { return word >> lane_index() & 1; }

// How many of the lanes before this one voted.
__device__ __forceinline__ int votes_before(unsigned votes) { return __popc(votes & ((1u << lane_index()) - 1)); }

// Position of `value` in a list of distinct numbers, or `length`; the same in every lane.
__device__ __forceinline__ int64_t find_in_list(const int32_t* __restrict__ list, int64_t length, int64_t value) {
  for (int64_t base = 0; base < length; base += kWarp) {
    const int64_t t = base + lane_index();
    const unsigned votes = __ballot_sync(kAllLanes, t < length && list[t] == value);
    if (votes) return base + __ffs(static_cast<int>(votes)) - 1;
  }
  return length;
}

// Marks, over the list and the half list of each sample, the neighbours that have the sample in theirs.
// Mapping:  one warp per row; for each neighbour in turn, lane t compares entries t, t + 32, ... of its list.
// Reads:    neighbor_idx [rows, k1]: k1 lists a row, coalesced, up to where the sample is found.
// Writes:   reciprocal_mask and half_mask, one bit for each entry of the list and of the half list.
// Limits:   1 <= half <= k1, rows of distinct indices; first_row < last_row < 2^31; the caller checks.
// Cost:     rows k1^2 compares and 4 rows k1^2 bytes, mostly from L2; latency-bound, one load after the other.
__global__ void mark_reciprocal_kernel(const int32_t* __restrict__ neighbor_idx, int64_t first_row, int64_t last_row,
                                       int64_t k1, int64_t half, uint32_t* __restrict__ reciprocal_mask,
                                       uint32_t* __restrict__ half_mask) {
  const int64_t row = first_row + static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= last_row) return;  // whole warps leave together
  const int32_t* list = neighbor_idx + row * k1;
  for (int64_t word = 0; word < mask_words(k1); ++word) {
    uint32_t in_list = 0, in_half = 0;
    for (int64_t t = word * kMaskBits; t < min(k1, (word + 1) * kMaskBits); ++t) {
      const int64_t position = find_in_list(neighbor_idx + list[t] * k1, k1, row);
      const uint32_t bit = 1u << (t % kMaskBits);
      if (position < k1) in_list |= bit;
      if (position < half && t < half) in_half |= bit;
    }
    if (lane_index() != 0) continue;
    reciprocal_mask[row * mask_words(k1) + word] = in_list;
    if (word < mask_words(half)) half_mask[row * mask_words(half) + word] = in_half;
  }
}

// A set of samples as bits in global memory, of one warp.
class SampleSet {
 public:
  __device__ explicit SampleSet(uint32_t* words) : words_(words) {}

  __device__ bool insert(int32_t j) {  // was it absent?
    const uint32_t bit = 1u << (j % kMaskBits);
    return !(atomicOr(word_of(j), bit) & bit);
  }
  __device__ bool contains(int32_t j) const { return *word_of(j) >> (j % kMaskBits) & 1; }
  __device__ void clear_around(int32_t j) { atomicExch(word_of(j), 0u); }

 private:
  __device__ uint32_t* word_of(int32_t j) const { return words_ + j / kMaskBits; }

  uint32_t* words_;
};

// Counts or lists the expanded k-reciprocal set of each sample: its reciprocal neighbours, and the half sets of those
// that overlap with them by more than two thirds.
// Mapping:  persistent; one warp per row, lane t takes entries t, t + 32, ... of a list. The sets are bits in global
//           scratch of the warp, zero between rows.
// Reads:    the masks and lists of the row and of its reciprocal neighbours, two or three times, later from L1.
// Writes:   lengths, or the members to col_idx at row_ptr, in no order, both of which start with first_row; each row's
//           bits by atomics on L2.
// Limits:   any k1 and any number of members; rows < 2^31; the caller checks.
// Cost:     rows k1 half tests and about rows (k1 + members) atomics of 32 bits; bound by the latency of L2.
template <bool kFill>
__global__ void expand_kernel(const int32_t* __restrict__ neighbor_idx, int64_t rows, int64_t first_row,
                              int64_t last_row, int64_t k1, int64_t half, const uint32_t* __restrict__ reciprocal_mask,
                              const uint32_t* __restrict__ half_mask, uint32_t* sets, int32_t* __restrict__ lengths,
                              const int64_t* __restrict__ row_ptr, int32_t* __restrict__ col_idx) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kExpandWarps;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kExpandWarps + warp_index();
  const int64_t words = mask_words(k1), half_words = mask_words(half), set_words = mask_words(rows);
  SampleSet reciprocal(sets + 2 * warp * set_words), expanded(sets + (2 * warp + 1) * set_words);
  for (int64_t row = first_row + warp; row < last_row; row += warps) {
    const int32_t* list = neighbor_idx + row * k1;
    const uint32_t* mask = reciprocal_mask + row * words;
    int32_t* members = kFill ? col_idx + row_ptr[row - first_row] : nullptr;
    int64_t count = 0;
    const auto append = [&](bool added, int32_t j) {
      const unsigned votes = __ballot_sync(kAllLanes, added);
      if (kFill && added) members[count + votes_before(votes)] = j;
      count += __popc(votes);
    };
    const auto for_each_reciprocal = [&](const auto& visit) {  // visit(q), all lanes the same
      for (int64_t word = 0; word < words; ++word)
        for (uint32_t bits = mask[word]; bits; bits &= bits - 1)
          visit(list[word * kMaskBits + __ffs(static_cast<int>(bits)) - 1]);
    };
    const auto for_each_of_half_set = [&](int32_t q, const auto& visit) {  // visit(is there one, which), for all lanes
      for (int64_t word = 0; word < half_words; ++word) {
        const bool marked = bit_of_lane(half_mask[q * half_words + word]);
        visit(marked, marked ? neighbor_idx[q * k1 + word * kMaskBits + lane_index()] : 0);
      }
    };

    for (int64_t word = 0; word < words; ++word) {
      const bool marked = bit_of_lane(mask[word]);
      const int32_t j = marked ? list[word * kMaskBits + lane_index()] : 0;
      if (marked) reciprocal.insert(j);
      append(marked && expanded.insert(j), j);
    }
    __syncwarp();
    for_each_reciprocal([&](int32_t q) {
      int64_t size = 0, shared = 0;
      for_each_of_half_set(q, [&](bool marked, int32_t j) {
        size += __popc(__ballot_sync(kAllLanes, marked));
        shared += __popc(__ballot_sync(kAllLanes, marked && reciprocal.contains(j)));
      });
      if (3 * shared > 2 * size)
        for_each_of_half_set(q, [&](bool marked, int32_t j) { append(marked && expanded.insert(j), j); });
    });
    if (!kFill && lane_index() == 0) lengths[row - first_row] = static_cast<int32_t>(count);
    __syncwarp();
    for_each_reciprocal([&](int32_t q) {
      if (lane_index() == 0) {
        reciprocal.clear_around(q);
        expanded.clear_around(q);
      }
      for_each_of_half_set(q, [&](bool marked, int32_t j) {
        if (marked) expanded.clear_around(j);
      });
    });
    __syncwarp();
  }
}

// Sorts the columns of each row.
// Mapping:  persistent; one block per row, in shared memory if the row fits, else where it lies.
// Reads:    col_idx, once, coalesced; a longer row once per step of the sort.
// Writes:   the same.
// Limits:   rows of fewer than 2^31 columns.
// Cost:     about m log2(m)^2 / 4 compares for m columns and 8 m bytes; bound by the latency of barriers.
__global__ void sort_rows_kernel(const int64_t* __restrict__ row_ptr, int64_t first_row, int64_t last_row,
                                 int64_t capacity, int32_t* col_idx) {
  int32_t* sorted = dynamic_shared<int32_t>();
  for (int64_t row = first_row + blockIdx.x; row < last_row; row += gridDim.x) {
    int32_t* columns = col_idx + row_ptr[row];
    const uint32_t length = static_cast<uint32_t>(row_ptr[row + 1] - row_ptr[row]);
    if (length > capacity) {
      block_sort(columns, length);
      continue;
    }
    for (uint32_t t = threadIdx.x; t < length; t += blockDim.x) sorted[t] = columns[t];
    block_sort(sorted, length);
    for (uint32_t t = threadIdx.x; t < length; t += blockDim.x) columns[t] = sorted[t];  // no other thread's
  }
}

// Dot products of each row with the others that its columns name.
// Mapping:  one warp per row, which takes four columns at a time.
// Reads:    the row and the others, coalesced, mostly from L2, where neighbours of neighbours meet.
// Writes:   dots [nnz], once.
// Limits:   a sound pattern; the caller checks.
// Cost:     nnz d float64 multiply-adds and 5 nnz d bytes; bound by L2 and by the conversions to float64.
__global__ void sampled_dots_kernel(const float* __restrict__ rows, const float* __restrict__ others,
                                    int64_t first_row, int64_t last_row, int64_t d,
                                    const int64_t* __restrict__ row_ptr, const int32_t* __restrict__ col_idx,
                                    double* __restrict__ dots) {
  const int64_t row = first_row + static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= last_row) return;
  const int64_t begin = row_ptr[row], end = row_ptr[row + 1];
  const bool aligned = rows_are_aligned(rows, d) && rows_are_aligned(others, d);
  for (int64_t base = begin; base < end; base += kDotsAtOnce) {
    const float* named[kDotsAtOnce];
    for (int r = 0; r < kDotsAtOnce; ++r) named[r] = others + col_idx[min(base + r, end - 1)] * d;
    double found[kDotsAtOnce];
    warp_dots<kDotsAtOnce>(rows + row * d, named, d, aligned, found);
#pragma unroll
    for (int r = 0; r < kDotsAtOnce; ++r)
      if (lane_index() == r && base + r < end) dots[base + r] = found[r];
  }
}

// Softmax of 2 dot - 2 over each row, in fixed point.
// Mapping:  one warp per row, lane t takes entries t, t + 32, ...
// Reads:    dots [nnz], three times, coalesced, later from L1.
// Writes:   values [nnz] and lengths [rows], once; wrong by atomicOr, and nothing else of a row that cannot be weighed.
// Limits:   a sound row_ptr; the caller checks.
// Cost:     28 nnz bytes and 2 nnz exponentials in float64; memory-bound.
__global__ void weigh_members_kernel(int64_t first_row, int64_t last_row, const int64_t* __restrict__ row_ptr,
                                     const double* __restrict__ dots, int32_t* values, int32_t* __restrict__ lengths,
                                     unsigned long long* wrong) {
  const int lane = lane_index();
  const int64_t row = first_row + static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= last_row) return;
  const int64_t begin = row_ptr[row], count = row_ptr[row + 1] - begin;
  double largest = -HUGE_VAL;
  bool bad = count > kOne;
  for (int64_t t = lane; t < count; t += kWarp) {
    const double dot = dots[begin + t];
    bad |= !(fabs(dot) < kDotLimit);
    largest = dot > largest ? dot : largest;
  }
  if (__any_sync(kAllLanes, bad)) {  // whole warps leave together
    if (lane == 0) atomicOr(wrong, 1ull);
    return;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, largest, step);
    largest = other > largest ? other : largest;
  }
  uint64_t total = 0;
  for (int64_t t = lane; t < count; t += kWarp) total += fixed_weight(dots[begin + t], largest);
  for (int step = kWarp / 2; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  ShareSummary summary;
  int64_t stored = 0;
  for (int64_t base = 0; base < count; base += kWarp) {
    const int64_t t = base + lane;
    const int32_t share = t < count ? fixed_share(fixed_weight(dots[begin + t], largest), total) : 0;
    if (t < count) values[begin + t] = share;
    summary.add(share, t);
    stored += __popc(__ballot_sync(kAllLanes, share > 0));
  }
  summary.fold();
  if (count > 0 && lane == summary.position() % kWarp) values[begin + summary.position()] += summary.rest();
  if (lane == 0) lengths[row] = static_cast<int32_t>(stored);
}

// Copies the entries of each row that are not zero.
// Mapping:  one warp per row, lane t takes entries t, t + 32, ...
// Reads:    col_idx and values [nnz], once, coalesced.
// Writes:   col_idx_out and values_out, once, at row_ptr_out.
// Limits:   last_row - first_row < 2^31.
// Cost:     16 nnz bytes; memory-bound.
__global__ void drop_zeros_kernel(const int64_t* __restrict__ row_ptr, const int32_t* __restrict__ col_idx,
                                  const int32_t* __restrict__ values, int64_t first_row, int64_t last_row,
                                  const int64_t* __restrict__ row_ptr_out, int32_t* __restrict__ col_idx_out,
                                  int32_t* __restrict__ values_out) {
  const int64_t row = first_row + static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= last_row) return;
  const int64_t end = row_ptr[row + 1];
  int64_t out = row_ptr_out[row];
  for (int64_t base = row_ptr[row]; base < end; base += kWarp) {
    const int64_t p = base + lane_index();
    const int32_t value = p < end ? values[p] : 0;
    const unsigned votes = __ballot_sync(kAllLanes, value != 0);
    if (value != 0) {
      col_idx_out[out + votes_before(votes)] = col_idx[p];
      values_out[out + votes_before(votes)] = value;
    }
    out += __popc(votes);
  }
}

int64_t blocks_for(int64_t rows) { return (rows + kWarpsPerBlock - 1) / kWarpsPerBlock; }

}  // namespace
}  // namespace dmic

const char* dmic_launch_mark_reciprocal(const int32_t* neighbor_idx, int64_t first_row, int64_t last_row, int64_t k1,
                                        int64_t half, uint32_t* reciprocal_mask, uint32_t* half_mask, void* stream) {
  using namespace dmic;
  return launch(mark_reciprocal_kernel, blocks_for(last_row - first_row), kWarpsPerBlock * kWarp, 0,
                static_cast<cudaStream_t>(stream), neighbor_idx, first_row, last_row, k1, half, reciprocal_mask,
                half_mask);
}

int64_t dmic_expand_reciprocal_blocks() { return dmic::num_multiprocessors() * dmic::kExpandBlocksPerMultiprocessor; }

const char* dmic_launch_expand_reciprocal(const int32_t* neighbor_idx, int64_t rows, int64_t first_row,
                                          int64_t last_row, int64_t k1, int64_t half, const uint32_t* reciprocal_mask,
                                          const uint32_t* half_mask, uint32_t* sets, int64_t blocks, int32_t* lengths,
                                          const int64_t* row_ptr, int32_t* col_idx, void* stream) {
  using namespace dmic;
  return launch(row_ptr ? expand_kernel<true> : expand_kernel<false>, blocks, kExpandWarps * kWarp, 0,
                static_cast<cudaStream_t>(stream), neighbor_idx, rows, first_row, last_row, k1, half, reciprocal_mask,
                half_mask, sets, lengths, row_ptr, col_idx);
}

const char* dmic_launch_sort_rows(const int64_t* row_ptr, int64_t first_row, int64_t last_row, int64_t capacity,
                                  int32_t* col_idx, void* stream) {
  using namespace dmic;
  const int64_t blocks = min(last_row - first_row, num_multiprocessors() * kSortBlocksPerMultiprocessor);
  return launch(sort_rows_kernel, blocks, kSortThreads, static_cast<size_t>(capacity) * sizeof(int32_t),
                static_cast<cudaStream_t>(stream), row_ptr, first_row, last_row, capacity, col_idx);
}

const char* dmic_launch_sampled_dots(const float* rows, const float* others, int64_t first_row, int64_t last_row,
                                     int64_t d, const int64_t* row_ptr, const int32_t* col_idx, double* dots,
                                     void* stream) {
  using namespace dmic;
  return launch(sampled_dots_kernel, blocks_for(last_row - first_row), kWarpsPerBlock * kWarp, 0,
                static_cast<cudaStream_t>(stream), rows, others, first_row, last_row, d, row_ptr, col_idx, dots);
}

const char* dmic_launch_weigh_members(int64_t first_row, int64_t last_row, const int64_t* row_ptr, const double* dots,
                                      int32_t* values, int32_t* lengths, unsigned long long* wrong, void* stream) {
  using namespace dmic;
  return launch(weigh_members_kernel, blocks_for(last_row - first_row), kWarpsPerBlock * kWarp, 0,
                static_cast<cudaStream_t>(stream), first_row, last_row, row_ptr, dots, values, lengths, wrong);
}

const char* dmic_launch_drop_zeros(const int64_t* row_ptr, const int32_t* col_idx, const int32_t* values,
                                   int64_t first_row, int64_t last_row, const int64_t* row_ptr_out,
                                   int32_t* col_idx_out, int32_t* values_out, void* stream) {
  using namespace dmic;
  return launch(drop_zeros_kernel, blocks_for(last_row - first_row), kWarpsPerBlock * kWarp, 0,
                static_cast<cudaStream_t>(stream), row_ptr, col_idx, values, first_row, last_row, row_ptr_out,
                col_idx_out, values_out);
}
