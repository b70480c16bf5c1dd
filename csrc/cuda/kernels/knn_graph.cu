// Exact nearest neighbours from float16 products that only propose candidates.
//
// Features are scaled by a power of two that brings the longest row into [2^14, 2^15) and rounded to float16. Every tile
// of X X^T is computed once by the tensor cores and serves its rows and its columns. A pair is dropped at once if a
// rigorous bound on its distance is beyond what the row has already seen k1 samples within; the rare survivors are
// appended to lists, which are compacted between waves of tiles. In the end the survivors are re-scored with the
// canonical float64 distance. A row's certificate: no candidate was lost to a full list, and its k1-th distance, or
// `farthest` if that is nearer, is within `reach`, which everything dropped is beyond. Rows without one are compared with
// every sample exactly.
//
// With a split, tiles are of rows of one side and columns of the other, and lists start empty.
//
// The bound, in scaled units: |x_i . x_j - score| <= e_i L_j + L_i e_j + gamma L_i L_j, where e is the norm of what the
// rounding lost, L >= |x| and >= |x rounded|, and gamma is what the sum of d products can lose. Tensor cores align the
// terms of a step to the largest and truncate; 10 units of 2^-23 of it are allowed for 8 products and their sum.
#include "knn_graph.cuh"

#include "../../canonical/half.h"
#include "../compat/device_ops.h"
#include "block_sort.cuh"
#include "warp.cuh"

namespace dmic {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kSelectThreads = 256, kSelectThreadsOfFewRows = 64, kFewRows = 4096;
constexpr int64_t kListBytes = 48 * 1024;     // of shared memory for the lists of a block's warps
constexpr int kRedoRows = 4;                  // that share one read of a sample
constexpr uint32_t kNone = 0x7fffffffu;       // bits of a distance that is not in the list: NaN, beyond all distances
constexpr double kRounding = 0x1p-24;         // unit roundoff of float32
constexpr double kUnderflow = 0x1p-120;       // more than denormals can lose in the filter
constexpr double kCanonical = 0x1p-30;        // more than the float64 roundings of a distance, relative to the norms
constexpr int kDepth = 64;                    // columns of a step: 128 bytes of a row
constexpr int kUnits = kDepth / 8;            // of 16 bytes
constexpr int kStages = 3;
constexpr int kBlocksPerGroup = 8;            // row blocks that neighbouring tiles share, for the second-level cache

struct Bound {  // of a row, in scaled units
  float length;      // L
  float error;       // e + (gamma + roundings of the filter) L
  float residual;    // e
  float half_norm;   // |x|^2 / 2, rounded down
};
static_assert(sizeof(Bound) == 16, "bounds are read 16 bytes at a time");

// What a warp computes: kMmaRows x kMmaCols products of 16 x 8; and a block: kWarpRows x kWarpCols of those.
template <int kWarpRows_, int kWarpCols_, int kMmaRows_, int kMmaCols_>
struct Tile {
  static constexpr int kWarpCols = kWarpCols_, kMmaRows = kMmaRows_, kMmaCols = kMmaCols_;
  static constexpr int kThreads = kWarpRows_ * kWarpCols_ * kWarp;
  static constexpr int kRows = kWarpRows_ * kMmaRows * 16, kCols = kWarpCols * kMmaCols * 8;
  static constexpr int kStageUnits = (kRows + kCols) * kUnits;
  static constexpr int kCopies = kStageUnits / kThreads, kRowsPerCopy = kThreads / kUnits;  // of a thread, of a step
  static constexpr int kRowCopies = kRows / kRowsPerCopy;
  static constexpr size_t kSharedBytes = static_cast<size_t>(kStages) * kStageUnits * 16;
  static_assert(kCols == 2 * kRows, "two tiles cover the rows of a block");
  static_assert(kRowsPerCopy % 8 == 0 && kRows % kRowsPerCopy == 0, "copies of a thread share a swizzle and a matrix");
};
using LargeTile = Tile<2, 4, 4, 8>;  // 128 x 256
using SmallTile = Tile<1, 2, 2, 4>;  // 32 x 64

__device__ float float_below(double value) {
  const float rounded = static_cast<float>(value);
  return static_cast<double>(rounded) > value ? nextafterf(rounded, -HUGE_VALF) : rounded;
}

__device__ float float_above(double value) { return -float_below(-value); }

// Blocks of nearly equal size, so that each has seen enough of itself to start from.
__host__ __device__ int64_t block_begin(int64_t block, int64_t blocks, int64_t rows) { return block * rows / blocks; }

// Consecutive samples, cut into blocks.
struct Side {
  int64_t first, rows, blocks;
  __device__ int64_t begin(int64_t block) const { return first + block_begin(block, blocks, rows); }
};

// A sample is compared with all, or with those on the other side of the split.
__device__ bool are_compared(int64_t i, int64_t j, int64_t split) { return split == 0 || (i < split) != (j < split); }

// The largest scaled distance that may still round to `within`: at equal float32 distances the lower index wins.
__device__ double threshold_of(float within, double scale_sq) {
  const float next = nextafterf(within, HUGE_VALF);
  return next < HUGE_VALF ? static_cast<double>(next) * scale_sq : HUGE_VAL;
}

// What the filter compares with, of a row that drops what is beyond the threshold.
__device__ float limit_of(double norm, double threshold) {
  return float_below((norm - threshold) / 2 - 8 * kRounding * (norm + threshold) - kUnderflow);
}

__device__ uint64_t pack(uint32_t high, int64_t low) { return static_cast<uint64_t>(high) << 32 | static_cast<uint64_t>(low); }
__device__ int64_t index_of(uint64_t entry) { return static_cast<int64_t>(entry & 0xffffffffu); }
__device__ float value_of(uint64_t entry) { return bits_float(static_cast<uint32_t>(entry >> 32)); }

// The number of keys of a list that come before one of them; equal keys by position.
template <class Key>
__device__ int rank_of(const Key* keys, int count, int at) {
  const Key key = keys[at];
  int rank = 0;
  for (int t = 0; t < count; ++t) rank += keys[t] < key || (keys[t] == key && t < at);
  return rank;
}

// |x|^2 of every row in the canonical order, and the largest.
// Mapping:  one warp per row; lane t holds columns 4 t .. 4 t + 3 of every 128.
// Reads:    features [rows, d] float32, once, coalesced.
// Writes:   norm_sq [rows] float64; largest by atomicMax, one a row.
// Limits:   rows < 2^31; finite sums: d <= 2^20.
// Cost:     4 rows d bytes and rows d float64 multiply-adds; memory-bound.
__global__ void knn_graph_norms_kernel(const float* __restrict__ features, int64_t rows, int64_t d,
                                       double* __restrict__ norm_sq, unsigned long long* __restrict__ largest) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  if (row >= rows) return;  // whole warps leave together
  const float* x = features + row * d;
  const float* const self[1] = {x};
  double sum_sq[1];
  warp_dots<1>(x, self, d, rows_are_aligned(features, d), sum_sq);
  if (lane_index() != 0) return;
  norm_sq[row] = sum_sq[0];
  unsigned long long bits;
  memcpy(&bits, &sum_sq[0], sizeof bits);
  atomicMax(largest, bits);  // numbers that are not negative order like their bits, and NaN is beyond them all
}

// What the filter needs to know of every row, and the state that its search starts from.
// Mapping:  one thread per row.
// Reads:    norm_sq [rows] float64, residual_norm [rows] float32 and farthest [rows] unless null, once.
// Writes:   bounds [rows], count, limit and reach [rows], once.
// Limits:   rows < 2^31; scale * |x| < 2^15; blocks of the tiles in place, 0: none.
// Cost:     40 bytes a row; memory-bound, negligible.
__global__ void knn_graph_start_kernel(const double* __restrict__ norm_sq, const float* __restrict__ residual_norm,
                                       int64_t rows, double gamma, double scale_sq, int64_t blocks,
                                       const float* __restrict__ farthest, Bound* __restrict__ bounds,
                                       int32_t* __restrict__ count, float* __restrict__ limit,
                                       float* __restrict__ reach) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const double norm = norm_sq[row] * scale_sq, residual = residual_norm[row];
  const double length = sqrt(norm) * (1 + kRounding) + residual;
  bounds[row].length = float_above(length);
  bounds[row].error = float_above((residual + (gamma + 8 * kRounding) * length) * (1 + 4 * kRounding));
  bounds[row].residual = float_above(residual * (1 + 4 * kRounding));
  bounds[row].half_norm = float_below(norm / 2 * (1 - 16 * kRounding) - kUnderflow);
  count[row] = 0;
  if (blocks > 0) {
    const int64_t block = ((row + 1) * blocks - 1) / rows;
    count[row] = static_cast<int32_t>(block_begin(block + 1, blocks, rows) - block_begin(block, blocks, rows));
  }
  reach[row] = farthest ? farthest[row] : HUGE_VALF;
  limit[row] = limit_of(norm, threshold_of(reach[row], scale_sq));
}

// Scores of tiles of X X^T in float16 with float32 sums, filtered where they are: none is written but the survivors.
// Mapping:  one block per tile of kRows x kCols pairs; a warp owns kMmaRows x kMmaCols products of 16 x 8 in registers.
//           Rows and columns are of the same side, or of two, of which that of the rows has no more blocks.
// Reads:    rounded [rows, d] float16 through a ring of kStages steps of 64 columns in shared memory, 16 bytes a copy,
//           units swizzled by row so that ldmatrix meets no bank twice; bounds and limits of the tile's rows and columns.
// Writes:   survivors to lists [rows, capacity], positions by atomicAdd on count; the first tile of a row without atomics.
// Limits:   rows < 2^31; d a multiple of 8; a position beyond the capacity is counted and not written: no certificate.
// Cost:     2 kRows kCols d operations of the tensor cores a tile, rows^2 d in all, or twice the product of two sides;
//           2 (kRows + kCols) d bytes a tile from the second-level cache; 7 operations a pair for the filter. Tensor
//           cores, then cache bandwidth.
template <class T>
__global__ void __launch_bounds__(T::kThreads)
    knn_graph_compare_kernel(const uint16_t* __restrict__ rounded, Side rows, Side cols, int64_t d,
                             int64_t first_shift, int64_t shifts, const Bound* __restrict__ bounds,
                             const float* __restrict__ limit, uint64_t* __restrict__ lists, int64_t capacity,
                             int32_t* __restrict__ count) {
  const int64_t pair = blockIdx.x / 2, group_size = kBlocksPerGroup * shifts, within = pair % group_size;
  const int64_t row_block = pair / group_size * kBlocksPerGroup + within % kBlocksPerGroup;
  const int64_t shift = first_shift + within / kBlocksPerGroup;
  const bool one_side = rows.first == cols.first;
  if (row_block >= rows.blocks) return;
  if (one_side && 2 * shift == rows.blocks && row_block >= shift) return;  // the half turn meets every pair twice
  const int64_t col_block = (row_block * cols.blocks / rows.blocks + shift) % cols.blocks;
  const int64_t row_begin = rows.begin(row_block) + blockIdx.x % 2 * T::kRows, row_end = rows.begin(row_block + 1);
  const int64_t col_begin = cols.begin(col_block), col_end = cols.begin(col_block + 1);
  if (row_begin >= row_end) return;

  // A thread copies the same unit of every kRowsPerCopy-th row; all of these have the same swizzle.
  const int unit = static_cast<int>(threadIdx.x) % kUnits, copy_row = static_cast<int>(threadIdx.x) / kUnits;
  const uint16_t* row_source = rounded + (row_begin + copy_row) * d + unit * 8;
  const uint16_t* col_source = rounded + (col_begin + copy_row) * d + unit * 8;
  const int rows_left = static_cast<int>(row_end - row_begin) - copy_row;
  const int cols_left = static_cast<int>(col_end - col_begin) - copy_row;
  uint4* const stages = dynamic_shared<uint4>();
  uint4* const target = stages + copy_row * kUnits + (unit ^ (copy_row & 7));
  const auto copy_step = [&](int step) {
    uint4* const stage = target + step % kStages * T::kStageUnits;
    const bool inside = step * kDepth + unit * 8 < d;
#pragma unroll
    for (int c = 0; c < T::kCopies; ++c) {
      const bool of_rows = c < T::kRowCopies;
      const int below = (of_rows ? c : c - T::kRowCopies) * T::kRowsPerCopy;
      const bool valid = inside && below < (of_rows ? rows_left : cols_left);
      const uint16_t* source = (of_rows ? row_source : col_source) + below * d + step * kDepth;
      copy_async16(stage + c * T::kRowsPerCopy * kUnits, valid ? source : rounded, valid);
    }
  };

  const int lane = lane_index();
  const int warp_row = warp_index() / T::kWarpCols * T::kMmaRows * 16, warp_col = warp_index() % T::kWarpCols * T::kMmaCols * 8;
  float sums[T::kMmaRows][T::kMmaCols][4] = {};
  const int steps = static_cast<int>((d + kDepth - 1) / kDepth);
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) copy_step(step);
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the step is here for every thread, and the one before it is no longer read
    if (step + kStages - 1 < steps) copy_step(step + kStages - 1);
    commit_copies();
    const uint4* stage = stages + step % kStages * T::kStageUnits;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[T::kMmaRows][4], b[T::kMmaCols][2];
#pragma unroll
      for (int m = 0; m < T::kMmaRows; ++m) {
        const int r = warp_row + m * 16 + lane % 16;
        load_matrices_x4(a[m], stage + r * kUnits + ((2 * k + lane / 16) ^ (r & 7)));
      }
#pragma unroll
      for (int n = 0; n < T::kMmaCols; n += 2) {
        const int r = T::kRows + warp_col + n * 8 + lane / 16 * 8 + lane % 8;
        uint32_t two[4];
        load_matrices_x4(two, stage + r * kUnits + ((2 * k + lane / 8 % 2) ^ (r & 7)));
        b[n][0] = two[0], b[n][1] = two[1], b[n + 1][0] = two[2], b[n + 1][1] = two[3];
      }
#pragma unroll
      for (int m = 0; m < T::kMmaRows; ++m)
#pragma unroll
        for (int n = 0; n < T::kMmaCols; ++n) multiply_tile_f16(sums[m][n], a[m], b[n]);
    }
  }

  const int64_t first_row = row_begin + warp_row + lane / 4, first_col = col_begin + warp_col + lane % 4 * 2;
  constexpr int kRowsOfThread = 2 * T::kMmaRows;
  if (one_side && shift == 0) {  // the first tile of a row: all of it, in place
#pragma unroll
    for (int n = 0; n < T::kMmaCols; ++n)
#pragma unroll
      for (int r = 0; r < kRowsOfThread; ++r)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int64_t i = first_row + r * 8, j = first_col + n * 8 + c;
          if (i < row_end && j < col_end)
            lists[i * capacity + (j - col_begin)] = pack(float_bits(sums[r / 2][n][r % 2 * 2 + c]), j);
        }
    return;
  }
  const auto append = [&](int64_t i, int64_t j, float score, bool for_i, bool for_j) {
#pragma unroll 1  // rare: less code is better than less work
    for (int side = for_i ? 0 : 1; side < (for_j ? 2 : 1); ++side) {
      const int64_t sample = side == 0 ? i : j, other = side == 0 ? j : i;
      const int position = atomicAdd(count + sample, 1);
      if (position < capacity) lists[sample * capacity + position] = pack(float_bits(score), other);
    }
  };
  const auto bound_of = [&](int64_t sample, int64_t end, float& sample_limit) {
    if (sample < end) {
      sample_limit = limit[sample];
      return bounds[sample];
    }
    sample_limit = HUGE_VALF;  // no pair with padding is within it: neither a number nor NaN is at least infinity
    return Bound{0.0f, 0.0f, 0.0f, HUGE_VALF};
  };
  Bound row_bounds[kRowsOfThread];
  float row_limits[kRowsOfThread];
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) row_bounds[r] = bound_of(first_row + r * 8, row_end, row_limits[r]);
#pragma unroll
  for (int n = 0; n < T::kMmaCols; ++n)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int64_t j = first_col + n * 8 + c;
      float col_limit;
      const Bound col = bound_of(j, col_end, col_limit);
#pragma unroll
      for (int r = 0; r < kRowsOfThread; ++r) {
        const int64_t i = first_row + r * 8;
        const Bound row = row_bounds[r];
        const float score = sums[r / 2][n][r % 2 * 2 + c];
        const float highest = fmaf(row.length, col.residual, fmaf(row.error, col.length, score));
        const bool for_row = highest >= col.half_norm + row_limits[r];
        const bool for_col = highest >= row.half_norm + col_limit;
        if (for_row || for_col) append(i, j, score, for_row, for_col);
      }
    }
}

// Tightens what a row may drop to the k1-th smallest upper bound of its candidates, and drops those beyond it.
// Mapping:  one warp per row; the upper bounds in shared memory; the k1-th smallest by counting.
// Reads:    lists [rows, capacity], count entries of each; norm_sq and bounds of the candidates, gathered.
// Writes:   lists in place, count, limit and reach; overflowed [rows] where candidates were lost.
// Limits:   8 capacity bytes of shared memory a warp.
// Cost:     c^2 / 32 compares a warp for c candidates (about 90, after the first tile 256); latency of shared memory.
__global__ void knn_graph_compact_kernel(const double* __restrict__ norm_sq, double scale_sq, int64_t rows, int64_t k1,
                                         const Bound* __restrict__ bounds, uint64_t* __restrict__ lists,
                                         int64_t capacity, int32_t* __restrict__ count, float* __restrict__ limit,
                                         float* __restrict__ reach, uint8_t* __restrict__ overflowed) {
  const int lane = lane_index();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
  if (row >= rows) return;  // whole warps leave together
  double* uppers = dynamic_shared<double>() + warp_index() * capacity;
  uint64_t* list = lists + row * capacity;
  const int found = static_cast<int>(count[row] < capacity ? count[row] : capacity);
  if (found == 0) return;  // with two sides; the count is not written while others read it
  if (lane == 0 && count[row] > capacity) overflowed[row] = 1;
  const double norm = norm_sq[row] * scale_sq;
  const Bound bound = bounds[row];
  const auto middle = [&](uint64_t entry) {
    return norm + norm_sq[index_of(entry)] * scale_sq - 2 * static_cast<double>(value_of(entry));
  };
  const auto slack = [&](uint64_t entry) {
    const Bound other = bounds[index_of(entry)];
    const double product = static_cast<double>(bound.error) * other.length + static_cast<double>(bound.length) * other.residual;
    return 2 * product + kCanonical * (norm + norm_sq[index_of(entry)] * scale_sq) + kUnderflow;
  };
  float within = HUGE_VALF;  // float32: k1 samples are within it, not scaled
  if (found >= k1) {
    for (int t = lane; t < found; t += kWarp) uppers[t] = middle(list[t]) + slack(list[t]);
    __syncwarp();
    for (int t = lane; t < found; t += kWarp)
      if (rank_of(uppers, found, t) == k1 - 1) within = float_above(fmax(0.0, uppers[t] / scale_sq));
    for (int step = kWarp / 2; step > 0; step /= 2) within = fminf(within, __shfl_xor_sync(kAllLanes, within, step));
  }
  const double threshold = threshold_of(within, scale_sq);
  int kept = 0;
  for (int first = 0; first < found; first += kWarp) {
    const int t = first + lane;
    const uint64_t entry = t < found ? list[t] : 0;
    const bool keep = t < found && middle(entry) - slack(entry) <= threshold;
    const unsigned keepers = __ballot_sync(kAllLanes, keep);
    __syncwarp();  // entries are read before others take their place
    if (keep) list[kept + __popc(keepers & ((1u << lane) - 1))] = entry;
    kept += __popc(keepers);
  }
  if (lane != 0) return;
  count[row] = kept;
  if (threshold == HUGE_VAL) return;
  reach[row] = fminf(reach[row], within);
  limit[row] = fmaxf(limit[row], limit_of(norm, threshold));
}

// Canonical distances of the candidates, the k1 nearest of them within `farthest` in order, -1 and infinity where there
// are fewer, and the certificate of the row.
// Mapping:  one warp per row, four candidates at a time; (distance, index) keys in shared memory, ranked by counting.
// Reads:    lists; features of the row and of its c candidates (about 50), gathered, 16 bytes a lane.
// Writes:   neighbor_idx and neighbor_dist [rows, k1]; rows without a certificate to redo, by atomicAdd.
// Limits:   8 capacity bytes of shared memory a warp; redo has room for every row.
// Cost:     4 (5 c / 4) d bytes and c d float64 multiply-adds a row; bandwidth of memory and second-level cache.
__global__ void knn_graph_finish_kernel(const float* __restrict__ features, const double* __restrict__ norm_sq,
                                        int64_t rows, int64_t d, int64_t k1, const uint64_t* __restrict__ lists,
                                        int64_t capacity, const int32_t* __restrict__ count,
                                        const float* __restrict__ reach, const uint8_t* __restrict__ overflowed,
                                        const float* __restrict__ farthest, int32_t* __restrict__ neighbor_idx,
                                        float* __restrict__ neighbor_dist, int32_t* __restrict__ redo,
                                        unsigned long long* __restrict__ redo_count) {
  constexpr int kAtOnce = 4;
  const int lane = lane_index();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
  if (row >= rows) return;  // whole warps leave together
  uint64_t* keys = dynamic_shared<uint64_t>() + warp_index() * capacity;
  const uint64_t* list = lists + row * capacity;
  const int found = count[row];
  const bool aligned = rows_are_aligned(features, d);
  bool certified = !overflowed[row];
  if (certified) {
    for (int first = 0; first < found; first += kAtOnce) {
      const float* others[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) others[r] = features + index_of(list[first + r < found ? first + r : first]) * d;
      double dots[kAtOnce];
      warp_dots<kAtOnce>(features + row * d, others, d, aligned, dots);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r)
        if (lane == r && first + r < found) {
          const int64_t j = index_of(list[first + r]);
          const double distance = squared_distance(norm_sq[row], norm_sq[j], dots[r]);
          keys[first + r] = pack(float_bits(static_cast<float>(distance)), j);
        }
    }
    __syncwarp();
    const float end = farthest ? farthest[row] : HUGE_VALF;
    bool beyond = found < k1 && !(end <= reach[row]);
    for (int t = lane; t < found; t += kWarp) {
      const int rank = rank_of(keys, found, t);
      if (rank >= k1) continue;
      const float value = value_of(keys[t]);
      neighbor_idx[row * k1 + rank] = value <= end ? static_cast<int32_t>(index_of(keys[t])) : -1;
      neighbor_dist[row * k1 + rank] = value <= end ? value : HUGE_VALF;
      beyond |= !(fminf(value, end) <= reach[row]);
    }
    for (int64_t rank = found + lane; rank < k1; rank += kWarp) {
      neighbor_idx[row * k1 + rank] = -1;
      neighbor_dist[row * k1 + rank] = HUGE_VALF;
    }
    certified = !__any_sync(kAllLanes, beyond);
  }
  if (!certified && lane == 0) redo[atomicAdd(redo_count, 1ull)] = static_cast<int32_t>(row);
}

// Canonical distances of a few rows to every sample that they are compared with; kNone to the others.
// Mapping:  one warp per sample and kRedoRows rows; lane t holds columns 4 t .. 4 t + 3 of every 128.
// Reads:    features, a sample once for kRedoRows rows; the rows come from the first-level cache.
// Writes:   distances [num_redo, rows] float32, once.
// Limits:   num_redo * rows / (kRedoRows * kWarpsPerBlock) < 2^31 blocks; the caller bounds the chunk.
// Cost:     num_redo rows d float64 multiply-adds, 5 d bytes a distance; float64 units and first-level cache.
__global__ void knn_graph_redo_distances_kernel(const float* __restrict__ features, const double* __restrict__ norm_sq,
                                                int64_t rows, int64_t d, int64_t split,
                                                const float* __restrict__ farthest, const int32_t* __restrict__ redo,
                                                int64_t num_redo, float* __restrict__ distances) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_index();
  const int64_t j = item % rows, first = item / rows * kRedoRows;
  if (first >= num_redo) return;  // whole warps leave together
  const float* others[kRedoRows];
  bool any_compared = false;
#pragma unroll
  for (int r = 0; r < kRedoRows; ++r) {
    const int64_t i = redo[first + r < num_redo ? first + r : first];
    others[r] = features + i * d;
    any_compared |= are_compared(i, j, split);
  }
  double dots[kRedoRows] = {};
  if (any_compared) warp_dots<kRedoRows>(features + j * d, others, d, rows_are_aligned(features, d), dots);
#pragma unroll
  for (int r = 0; r < kRedoRows; ++r)
    if (lane_index() == r && first + r < num_redo) {
      const int64_t i = redo[first + r];
      const float distance = static_cast<float>(squared_distance(norm_sq[i], norm_sq[j], dots[r]));
      const bool wanted = are_compared(i, j, split) && (!farthest || distance <= farthest[i]);
      distances[(first + r) * rows + j] = wanted ? distance : bits_float(kNone);
    }
}

// The k1 smallest of a row of distances by (distance, index): a radix selection, then a sort. kNone comes last.
// Mapping:  one block per row; 256 bins in shared memory for each of four digits.
// Reads:    distances [num_redo, rows] six times, coalesced.
// Writes:   keys [num_redo, k1], then neighbor_idx and neighbor_dist of the rows.
// Limits:   none on k1: the sort is in global memory.
// Cost:     24 rows bytes a row and k1 log2(k1)^2 / 4 compares; memory-bound.
__global__ void knn_graph_redo_select_kernel(const float* __restrict__ distances, int64_t rows, int64_t k1,
                                             const int32_t* __restrict__ redo, uint64_t* __restrict__ all_keys,
                                             int32_t* __restrict__ neighbor_idx, float* __restrict__ neighbor_dist) {
  constexpr int kBins = 256, kDigit = 8;
  __shared__ int histogram[kBins];
  __shared__ int warp_count[kSelectThreads / kWarp];
  __shared__ uint32_t shared_digit;
  __shared__ int shared_before, num_nearer;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const float* row = distances + static_cast<int64_t>(blockIdx.x) * rows;
  uint64_t* keys = all_keys + static_cast<int64_t>(blockIdx.x) * k1;
  uint32_t last = 0, known = 0;  // bits of the k1-th distance, and which of them are known
  int64_t wanted = k1;           // of those that agree in the known bits
  for (int shift = 32 - kDigit; shift >= 0; shift -= kDigit) {
    for (int bin = thread; bin < kBins; bin += threads) histogram[bin] = 0;
    __syncthreads();
    for (int64_t j = thread; j < rows; j += threads) {
      const uint32_t bits = float_bits(row[j]);
      if ((bits & known) == last) atomicAdd(&histogram[bits >> shift & (kBins - 1)], 1);
    }
    __syncthreads();
    if (thread == 0) {
      int before = 0;
      uint32_t digit = 0;
      while (before + histogram[digit] < wanted) before += histogram[digit++];
      shared_digit = digit;
      shared_before = before;
      num_nearer = 0;
    }
    __syncthreads();
    last |= shared_digit << shift;
    known |= static_cast<uint32_t>(kBins - 1) << shift;
    wanted -= shared_before;
  }
  int64_t taken = 0;  // of those at exactly the last distance, by ascending index
  for (int64_t first = 0; first < rows; first += threads) {
    const int64_t j = first + thread;
    const uint32_t bits = j < rows ? float_bits(row[j]) : 0xffffffffu;
    if (bits < last) keys[atomicAdd(&num_nearer, 1)] = pack(bits, j);
    const unsigned equal = __ballot_sync(kAllLanes, bits == last);
    if (lane_index() == 0) warp_count[warp_index()] = __popc(equal);
    __syncthreads();
    int64_t position = taken + __popc(equal & ((1u << lane_index()) - 1));
    for (int w = 0; w < threads / kWarp; ++w) {
      if (w < warp_index()) position += warp_count[w];
      taken += warp_count[w];
    }
    if (bits == last && position < wanted) keys[k1 - wanted + position] = pack(bits, j);
    __syncthreads();
  }
  block_sort(keys, static_cast<uint32_t>(k1));
  const int64_t out = redo[blockIdx.x] * k1;
  for (int64_t t = thread; t < k1; t += threads) {
    const bool none = keys[t] >> 32 == kNone;
    neighbor_idx[out + t] = none ? -1 : static_cast<int32_t>(index_of(keys[t]));
    neighbor_dist[out + t] = none ? HUGE_VALF : value_of(keys[t]);
  }
}

int warps_for_lists(int64_t capacity) {
  const int64_t warps = kListBytes / (capacity * static_cast<int64_t>(sizeof(uint64_t)));
  return static_cast<int>(warps < 1 ? 1 : warps < kWarpsPerBlock ? warps : kWarpsPerBlock);
}

template <class T>
const char* compare(const uint16_t* rounded, int64_t rows, int64_t d, int64_t split, int64_t first_shift,
                    int64_t shifts, const float* bounds, const float* limit, uint64_t* lists, int64_t capacity,
                    int32_t* count, cudaStream_t stream) {
  const int64_t before = split > 0 ? split : rows, after = rows - split;
  const Side one{0, before, blocks_for(before, T::kCols)}, other{split, after, blocks_for(after, T::kCols)};
  const Side& fewer = one.blocks <= other.blocks ? one : other;
  const Side& more = one.blocks <= other.blocks ? other : one;
  const int64_t tiles = 2 * blocks_for(fewer.blocks, kBlocksPerGroup) * kBlocksPerGroup * shifts;
  return launch(knn_graph_compare_kernel<T>, tiles, T::kThreads, T::kSharedBytes, stream, rounded, fewer, more, d,
                first_shift, shifts, reinterpret_cast<const Bound*>(bounds), limit, lists, capacity, count);
}

}  // namespace
}  // namespace dmic

using namespace dmic;

const char* dmic_launch_knn_graph_norms(const float* features, int64_t rows, int64_t d, double* norm_sq,
                                        unsigned long long* largest, void* stream) {
  return launch(knn_graph_norms_kernel, blocks_for(rows, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0,
                static_cast<cudaStream_t>(stream), features, rows, d, norm_sq, largest);
}

const char* dmic_launch_knn_graph_start(const double* norm_sq, const float* residual_norm, int64_t rows, int64_t d,
                                        double scale, int64_t blocks, const float* farthest, float* bounds,
                                        int32_t* count, float* limit, float* reach, void* stream) {
  constexpr int kThreads = 256;
  const double unit = (1.25 * static_cast<double>(d) + 32) * 0x1p-23, gamma = unit / (1 - unit);
  return launch(knn_graph_start_kernel, blocks_for(rows, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream),
                norm_sq, residual_norm, rows, gamma, scale * scale, blocks, farthest, reinterpret_cast<Bound*>(bounds),
                count, limit, reach);
}

bool dmic_knn_graph_large_tiles_fit() { return LargeTile::kSharedBytes <= max_shared_bytes(); }

int64_t dmic_knn_graph_block(bool large_tiles) { return large_tiles ? LargeTile::kCols : SmallTile::kCols; }

const char* dmic_launch_knn_graph_compare(const uint16_t* rounded, int64_t rows, int64_t d, int64_t split,
                                          bool large_tiles, int64_t first_shift, int64_t shifts, const float* bounds,
                                          const float* limit, uint64_t* lists, int64_t capacity, int32_t* count,
                                          void* stream) {
  const auto run = large_tiles ? compare<LargeTile> : compare<SmallTile>;
  return run(rounded, rows, d, split, first_shift, shifts, bounds, limit, lists, capacity, count,
             static_cast<cudaStream_t>(stream));
}

const char* dmic_launch_knn_graph_compact(const double* norm_sq, double scale, int64_t rows, int64_t k1,
                                          const float* bounds, uint64_t* lists, int64_t capacity, int32_t* count,
                                          float* limit, float* reach, uint8_t* overflowed, void* stream) {
  const int warps = warps_for_lists(capacity);
  return launch(knn_graph_compact_kernel, blocks_for(rows, warps), warps * kWarp, warps * capacity * sizeof(double),
                static_cast<cudaStream_t>(stream), norm_sq, scale * scale, rows, k1,
                reinterpret_cast<const Bound*>(bounds), lists, capacity, count, limit, reach, overflowed);
}

const char* dmic_launch_knn_graph_finish(const float* features, const double* norm_sq, int64_t rows, int64_t d,
                                         int64_t k1, const uint64_t* lists, int64_t capacity, const int32_t* count,
                                         const float* reach, const uint8_t* overflowed, const float* farthest,
                                         int32_t* neighbor_idx, float* neighbor_dist, int32_t* redo,
                                         unsigned long long* redo_count, void* stream) {
  const int warps = warps_for_lists(capacity);
  return launch(knn_graph_finish_kernel, blocks_for(rows, warps), warps * kWarp, warps * capacity * sizeof(uint64_t),
                static_cast<cudaStream_t>(stream), features, norm_sq, rows, d, k1, lists, capacity, count, reach,
                overflowed, farthest, neighbor_idx, neighbor_dist, redo, redo_count);
}

const char* dmic_launch_knn_graph_redo(const float* features, const double* norm_sq, int64_t rows, int64_t d, int64_t k1,
                                       int64_t split, const float* farthest, const int32_t* redo, int64_t num_redo,
                                       float* distances, uint64_t* keys, int32_t* neighbor_idx, float* neighbor_dist,
                                       void* stream_in) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_in);
  const int64_t warps = blocks_for(num_redo, kRedoRows) * rows;
  if (const char* error = launch(knn_graph_redo_distances_kernel, blocks_for(warps, kWarpsPerBlock),
                                 kWarpsPerBlock * kWarp, 0, stream, features, norm_sq, rows, d, split, farthest, redo,
                                 num_redo, distances))
    return error;
  const int threads = rows > kFewRows ? kSelectThreads : kSelectThreadsOfFewRows;
  return launch(knn_graph_redo_select_kernel, num_redo, threads, 0, stream, distances, rows, k1, redo, keys,
                neighbor_idx, neighbor_dist);
}
