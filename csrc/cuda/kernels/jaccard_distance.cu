#include "jaccard_distance.cuh"

#include <algorithm>

#include "../../canonical/half.h"
#include "../../canonical/jaccard.h"
#include "../compat/device_ops.h"
#include "block_sort.cuh"
#include "warp.cuh"

namespace dmic {
namespace {

constexpr int kThreads = 256;  // of the kernels that need no shared memory
constexpr int kRowsPerBlock = kThreads / kWarp;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int32_t kFreeKey = -1, kKnown = -1, kFull = -2;

__device__ __forceinline__ int64_t thread_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Two halves of a key, compared by the first.
__device__ __forceinline__ uint64_t packed(int32_t high, uint32_t low) {
  return static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | low;
}
__device__ __forceinline__ int32_t high_half(uint64_t key) { return static_cast<int32_t>(key >> 32); }
__device__ __forceinline__ int32_t low_half(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }

__device__ __forceinline__ uint64_t take(unsigned long long* cursor) { return atomicAdd(cursor, 1ull); }

// The first position in [begin, end) whose key is not below `key`, or end.
template <class Key>
__device__ __forceinline__ int64_t lower_bound(const Key* __restrict__ keys, int64_t begin, int64_t end, Key key) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (keys[middle] < key) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

// The sum of the values of lanes 0 to this one.
template <class T>
__device__ __forceinline__ T inclusive_sum(T value) {
  for (int step = 1; step < kWarp; step *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, step);
    if (lane_index() >= step) value += below;
  }
  return value;
}

// ---- inverted lists -----------------------------------------------------------------------------------------------

// How often each index occurs.
// Mapping:  one thread per index.
// Reads:    indices [num_indices] int32, once, coalesced.
// Writes:   counts by atomicAdd, one each.
// Limits:   every index is in the range of counts, and occurs less than 2^31 times; the caller checks.
// Cost:     4 bytes of memory traffic and one atomic per index; bound by atomics in L2.
__global__ void count_kernel(const int32_t* __restrict__ indices, int64_t num_indices, int32_t* counts) {
  const int64_t t = thread_of_grid();
  if (t < num_indices) atomicAdd(&counts[indices[t]], 1);
}

// Transposes rows: every stored value goes to the list of its column.
// Mapping:  one warp per row, lanes over its values.
// Reads:    row_ptr, col_idx and values, once, coalesced.
// Writes:   cursors by atomicAdd; lists [nnz] uint64, once, scattered.
// Limits:   1 <= rows < 2^31; the caller checks. Lists come in no order and are sorted next.
// Cost:     8 bytes read, one atomic and one scattered write of 8 bytes per value; bound by atomics in L2.
__global__ void lists_kernel(const int64_t* __restrict__ row_ptr, const int32_t* __restrict__ col_idx,
                             const int32_t* __restrict__ values, int64_t rows, int64_t first_row,
                             unsigned long long* cursors, uint64_t* __restrict__ lists) {
  const int64_t row = thread_of_grid() / kWarp;
  if (row >= rows) return;
  const int32_t number = static_cast<int32_t>(first_row + row);
  for (int64_t t = row_ptr[row] + lane_index(); t < row_ptr[row + 1]; t += kWarp)
    lists[take(&cursors[col_idx[t]])] = packed(number, static_cast<uint32_t>(values[t]));
}

// Sorts segments of keys.
// Mapping:  one block per segment.
// Reads:    keys uint64, once (segments that fit in shared memory) or log2(length)^2 / 2 times.
// Writes:   the same as it reads.
// Limits:   segments < 2^31, each less than 2^31 keys; shared_capacity keys of shared memory.
// Cost:     length log2(length)^2 / 4 comparisons; bound by shared memory and barriers, for long segments by L2.
__global__ void sort_kernel(const int64_t* __restrict__ ptr, uint64_t* keys, int64_t shared_capacity) {
  uint64_t* segment = keys + (ptr[blockIdx.x] - ptr[0]);
  const int64_t length = ptr[blockIdx.x + 1] - ptr[blockIdx.x];
  if (length > shared_capacity) {
    block_sort(segment, static_cast<uint32_t>(length));
    return;
  }
  if (length < 2) return;
  uint64_t* sorted = dynamic_shared<uint64_t>();
  for (int64_t t = threadIdx.x; t < length; t += blockDim.x) sorted[t] = segment[t];
  block_sort(sorted, static_cast<uint32_t>(length));
  for (int64_t t = threadIdx.x; t < length; t += blockDim.x) segment[t] = sorted[t];
}

// ---- what rows scan -----------------------------------------------------------------------------------------------

// Keys that put the columns of a row in order of falling weight.
// Mapping:  one thread per stored value.
// Reads:    col_idx and values [count] int32, once, coalesced.
// Writes:   keys [count] uint64, once, coalesced.
// Limits:   0 < values <= 2^30; the caller checks.
// Cost:     16 bytes of memory traffic per value; memory-bound.
__global__ void weigh_kernel(const int32_t* __restrict__ col_idx, const int32_t* __restrict__ values, int64_t count,
                             uint64_t* __restrict__ keys) {
  const int64_t t = thread_of_grid();
  if (t < count) keys[t] = packed(kOne - values[t], static_cast<uint32_t>(col_idx[t]));
}

// For every column of a row, the part of its list that comes after the row; pairs are looked for among later rows only.
// Mapping:  one warp per row, lanes over its columns.
// Reads:    keys uint64, once, coalesced; list_ptr, scattered; log2(list length) entries of every list, scattered.
// Writes:   plan, 16 bytes a column, and tiles [rows] int64, once.
// Limits:   1 <= rows < 2^31, lists in ascending order of their rows; the caller checks.
// Cost:     about 10 dependent reads of 32-byte sectors per column; bound by L2 latency.
__global__ void plan_kernel(const int64_t* __restrict__ row_ptr, int64_t first_row, int64_t rows,
                            const uint64_t* __restrict__ keys, const int64_t* __restrict__ list_ptr,
                            const uint64_t* __restrict__ lists, JaccardScan* __restrict__ plan,
                            int64_t* __restrict__ tiles) {
  const int64_t at = thread_of_grid() / kWarp;
  if (at >= rows) return;
  const int64_t row = first_row + at, base = row_ptr[first_row];
  int64_t sum = 0;
  for (int64_t t = row_ptr[row] - base + lane_index(); t < row_ptr[row + 1] - base; t += kWarp) {
    const int32_t column = low_half(keys[t]);
    const int64_t end = list_ptr[column + 1];
    const int64_t first = lower_bound(lists, list_ptr[column], end, packed(static_cast<int32_t>(row) + 1, 0));
    plan[t] = {first, static_cast<int32_t>(end - first), kOne - high_half(keys[t])};
    sum += (end - first + kWarp - 1) / kWarp;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane_index() == 0) tiles[at] = sum;
}

// ---- the join -----------------------------------------------------------------------------------------------------

// Overlaps of candidates in shared memory, under open addressing. A dropped candidate keeps its place.
struct SharedTable {
  static constexpr bool kCanFill = true;
  static constexpr size_t kBytesPerSlot = 2 * sizeof(int32_t) + sizeof(uint16_t);
  using Slot = uint16_t;

  __device__ SharedTable(int32_t* shared, uint32_t capacity, uint32_t max_probes)
      : overlaps(shared),
        rows(shared + capacity),
        candidates(reinterpret_cast<Slot*>(shared + 2 * capacity)),
        capacity(capacity),
        max_probes(max_probes) {}

  __device__ void clear() const {
    for (uint32_t slot = threadIdx.x; slot < capacity; slot += blockDim.x) {
      overlaps[slot] = 0;
      rows[slot] = kFreeKey;
    }
  }

  // The slot of a row that was not there, kKnown, or kFull: there is no place for it close to where it belongs.
  __device__ int32_t add(int32_t row, int32_t amount) const {
    for (uint32_t probe = 0; probe < max_probes; ++probe) {
      const uint32_t slot = (home(row) + probe) & (capacity - 1);
      int32_t found = load_relaxed(&rows[slot]);
      bool is_new = false;
      if (found == kFreeKey) {
        found = atomicCAS(&rows[slot], kFreeKey, row);
        is_new = found == kFreeKey;
      }
      if (!is_new && found != row) continue;
      atomicAdd(&overlaps[slot], amount);
      return is_new ? static_cast<int32_t>(slot) : kKnown;
    }
    return kFull;
  }

  // For candidates alone: a row that is none stays none. What a dropped one gains is not looked at any more.
  __device__ void add_known(int32_t row, int32_t amount) const {
    for (uint32_t probe = 0; probe < max_probes; ++probe) {
      const uint32_t slot = (home(row) + probe) & (capacity - 1);
      if (rows[slot] == kFreeKey) return;
      if (rows[slot] != row) continue;
      atomicAdd(&overlaps[slot], amount);
      return;
    }
  }

  __device__ int32_t row_of(int32_t slot) const { return rows[slot]; }
  __device__ uint32_t home(int32_t row) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(static_cast<uint32_t>(row) * 2654435769u) * capacity >> 32);
  }

  int32_t* overlaps;  // [capacity]
  int32_t* rows;      // [capacity]
  Slot* candidates;   // [capacity] slots in use, in no order
  uint32_t capacity, max_probes;
};

// The same with a place for every row, in global memory. The overlap of a row that is no candidate is zero.
struct DenseTable {
  static constexpr bool kCanFill = false;
  using Slot = int32_t;

  __device__ void clear() const {}
  __device__ int32_t add(int32_t row, int32_t amount) const {
    return atomicAdd(&overlaps[row], amount) == 0 ? row : kKnown;
  }
  __device__ void add_known(int32_t row, int32_t amount) const {
    if (load_relaxed(&overlaps[row]) > 0) atomicAdd(&overlaps[row], amount);
  }
  __device__ int32_t row_of(int32_t slot) const { return slot; }

  int32_t* overlaps;    // [all rows]
  int32_t* candidates;  // [all rows]
};

struct BlockState {  // in shared memory
  unsigned long long item, first_pair;
  int32_t num_candidates, full;
};

struct RowScan {  // where the scan of a row stands; the same in every thread
  const JaccardScan* plan;
  int64_t columns, tiles_left, column = 0;
  int32_t mass_left = kOne;
};

// Appends the slots of the lanes that want it. The whole warp takes part.
template <class Slot>
__device__ __forceinline__ void append(Slot* candidates, int32_t* num_candidates, int32_t slot, bool wanted) {
  const unsigned lanes = __ballot_sync(kAllLanes, wanted);
  if (lanes == 0) return;
  int32_t first = 0;
  if (lane_index() == 0) first = atomicAdd(num_candidates, __popc(lanes));
  first = __shfl_sync(kAllLanes, first, 0);
  if (wanted) candidates[first + __popc(lanes & ((1u << lane_index()) - 1))] = static_cast<Slot>(slot);
}

// Scans the lists of the next columns, at most 32: tiles of 32 entries, shared out to the warps of the block. With
// kInsert, rows seen for the first time become candidates, and the columns end where a new one could no longer qualify.
// Returns false if the table is full: the row must be given up.
template <bool kInsert, class Table>
__device__ __forceinline__ bool scan_columns(const JaccardJoin& join, const Table& table, BlockState& state,
                                             RowScan& scan) {
  const int lane = lane_index();
  JaccardScan mine{0, 0, 0};  // past the last column
  if (scan.column + lane < scan.columns) mine = scan.plan[scan.column + lane];
  const int32_t mass = inclusive_sum(mine.value);
  const bool taken = !kInsert || scan.mass_left - (mass - mine.value) >= join.threshold;
  const int num_taken = __popc(__ballot_sync(kAllLanes, taken));
  const uint32_t tiles = taken ? (static_cast<uint32_t>(mine.count) + kWarp - 1) / kWarp : 0;
  const uint32_t tiles_end = inclusive_sum(tiles);
  const uint32_t num_tiles = __shfl_sync(kAllLanes, tiles_end, kWarp - 1);
  for (uint32_t tile = warp_index(); tile < num_tiles; tile += blockDim.x / kWarp) {
    const int at = __popc(__ballot_sync(kAllLanes, tiles_end <= tile));
    const uint32_t first_tile = __shfl_sync(kAllLanes, tiles_end - tiles, at);
    const JaccardScan part = scan.plan[scan.column + at];
    const int64_t offset = static_cast<int64_t>(tile - first_tile) * kWarp + lane;
    const bool inside = offset < part.count;
    const uint64_t entry = inside ? join.lists[part.first + offset] : 0;
    const int32_t amount = min(part.value, low_half(entry));
    if (!kInsert) {
      if (inside) table.add_known(high_half(entry), amount);
      continue;
    }
    const int32_t slot = inside ? table.add(high_half(entry), amount) : kKnown;
    append(table.candidates, &state.num_candidates, slot, slot >= 0);
    if (!Table::kCanFill) continue;
    if (slot == kFull) atomicExch(&state.full, 1);
    if (__any_sync(kAllLanes, load_relaxed(&state.full))) return false;
  }
  scan.column += num_taken;
  scan.mass_left -= __shfl_sync(kAllLanes, mass, num_taken - 1);
  scan.tiles_left -= num_tiles;
  return true;
}

// Keeps the candidates with at least this overlap and sets the others to zero. Returns how many are left. There is a
// barrier before the first access and one after the last.
template <class Table>
__device__ __forceinline__ int32_t drop_candidates_below(int32_t overlap, const Table& table, BlockState& state,
                                                         int32_t num_candidates) {
  __syncthreads();
  if (threadIdx.x == 0) state.num_candidates = 0;
  for (int64_t base = 0; base < num_candidates; base += blockDim.x) {
    const int64_t t = base + threadIdx.x;
    int32_t slot = 0;
    bool keep = false;
    if (t < num_candidates) {
      slot = table.candidates[t];
      keep = table.overlaps[slot] >= overlap;
      if (!keep) table.overlaps[slot] = 0;
    }
    __syncthreads();  // what is kept moves to places that were read by now
    append(table.candidates, &state.num_candidates, slot, keep);
  }
  __syncthreads();
  return state.num_candidates;
}

// Overlaps of the candidates over their whole rows: a warp each, lanes over its values, which are looked up in row i.
template <class Table>
__device__ __forceinline__ void sum_whole_rows(const JaccardJoin& join, int64_t i, const Table& table,
                                               int32_t num_candidates) {
  const int64_t begin = join.row_ptr[i], end = join.row_ptr[i + 1];
  for (int64_t t = warp_index(); t < num_candidates; t += blockDim.x / kWarp) {
    const int32_t slot = table.candidates[t];
    const int64_t* partner = join.partner_row_ptr + (table.row_of(slot) - join.first_partner);
    int32_t overlap = 0;
    for (int64_t other = partner[0] + lane_index(); other < partner[1]; other += kWarp) {
      const int32_t column = join.partner_col_idx[other];
      const int64_t at = lower_bound(join.col_idx, begin, end, column);
      if (at < end && join.col_idx[at] == column) overlap += min(join.values[at], join.partner_values[other]);
    }
    overlap = __reduce_add_sync(kAllLanes, overlap);
    if (lane_index() == 0) table.overlaps[slot] = overlap;
  }
}

// Finds the partners j > i of one row, which are in the lists. Returns false if the table is full.
template <class Table>
__device__ __forceinline__ bool join_row(const JaccardJoin& join, int64_t i, const Table& table, BlockState& state) {
  const int64_t base = join.row_ptr[join.first_row], begin = join.row_ptr[i];
  RowScan scan{join.plan + (begin - base), join.row_ptr[i + 1] - begin, join.tiles[i - join.first_row]};
  while (scan.column < scan.columns && scan.mass_left >= join.threshold &&
         scan_columns<true>(join, table, state, scan)) {
  }
  __syncthreads();
  if (Table::kCanFill && state.full) return false;
  int32_t num_candidates = state.num_candidates;
  for (;;) {
    num_candidates = drop_candidates_below(join.threshold - scan.mass_left, table, state, num_candidates);
    if (scan.column >= scan.columns || num_candidates * join.verify_cost <= scan.tiles_left) break;
    scan_columns<false>(join, table, state, scan);
  }
  if (scan.column < scan.columns) {
    sum_whole_rows(join, i, table, num_candidates);
    num_candidates = drop_candidates_below(join.threshold, table, state, num_candidates);
  }
  if (threadIdx.x == 0) state.first_pair = atomicAdd(&join.counters[kJaccardPairs], num_candidates);
  __syncthreads();
  for (int64_t t = threadIdx.x; t < num_candidates; t += blockDim.x) {
    const int32_t slot = table.candidates[t];
    const int64_t pair = static_cast<int64_t>(state.first_pair) + t;
    if (pair < join.pair_capacity) {
      join.pairs[2 * pair] = static_cast<int32_t>(i);
      join.pairs[2 * pair + 1] = table.row_of(slot);
      join.distances[pair] = jaccard_from_overlap(table.overlaps[slot]);
    }
    table.overlaps[slot] = 0;
  }
  return true;
}

// Takes rows until none is left: the early ones, which have most rows after them, first.
template <class Table>
__device__ __forceinline__ void join_rows(const JaccardJoin& join, unsigned long long* ticket, int64_t items,
                                          const Table& table) {
  __shared__ BlockState state;
  for (;;) {
    __syncthreads();  // nobody looks at the last row any more
    if (threadIdx.x == 0) {
      state.item = take(ticket);
      state.num_candidates = 0;
      state.full = 0;
    }
    table.clear();
    __syncthreads();
    const int64_t item = static_cast<int64_t>(state.item);
    if (item >= items) return;
    const int64_t i = Table::kCanFill ? join.first_row + item : join.spilled_rows[item];
    if (join.tiles[i - join.first_row] == 0) continue;  // no later row has a column of this one
    if (!join_row(join, i, table, state) && threadIdx.x == 0)
      join.spilled_rows[take(&join.counters[kJaccardSpilled])] = static_cast<int32_t>(i);
  }
}

// Finds the pairs i < j with at least the wanted overlap. Rows with too many candidates for shared memory are queued.
// Mapping:  blocks take rows; a warp scans 32 entries of a list at a time.
// Reads:    plan, once; lists, the part after the row of those columns that the bound leaves, coalesced; rows of the
//           candidates that are left, if that is less work than the rest of the lists.
// Writes:   pairs and distances, 12 bytes a pair, once; spilled_rows, rarely.
// Limits:   capacity a power of two up to 2^16, with 10 bytes of shared memory each; a multiple of 32 threads.
// Cost:     8 bytes and one shared atomic per entry scanned: with N = 34167 and k2 = 32 a row has 3e4 to 1.7e5 in full,
//           of which the bound leaves a tenth to four tenths; bound by L2 bandwidth and by shared atomics.
__global__ void join_kernel(const JaccardJoin join, uint32_t capacity, uint32_t max_probes) {
  const SharedTable table(dynamic_shared<int32_t>(), capacity, max_probes);
  join_rows(join, &join.counters[kJaccardTicket], join.rows, table);
}

// The same for the queued rows, which may have any number of candidates.
// Mapping:  blocks take rows and have a slot each; a warp scans 32 entries of a list at a time.
// Reads:    as above; overlaps and candidates [slots, all_rows] int32 in place of shared memory.
// Writes:   as above.
// Limits:   one block per slot; a multiple of 32 threads.
// Cost:     8 bytes and one global atomic per entry scanned; bound by atomics in L2.
__global__ void join_spilled_kernel(const JaccardJoin join, int64_t num_spilled, int32_t* overlaps, int32_t* candidates,
                                    int64_t all_rows) {
  const int64_t mine = blockIdx.x * all_rows;
  join_rows(join, &join.counters[kJaccardSpilledTicket], num_spilled, DenseTable{overlaps + mine, candidates + mine});
}

// ---- rows in full: the mirrored pairs and the diagonal ------------------------------------------------------------

// One stored distance, to itself, for every row that the encoding has; none at all without a row_ptr.
// Mapping:  one thread per row.
// Reads:    row_ptr [rows + 1] int64, coalesced.
// Writes:   lengths [rows] int32, once, coalesced.
// Limits:   rows < 2^31; the caller checks.
// Cost:     12 bytes of memory traffic per row; memory-bound.
__global__ void diagonal_lengths_kernel(const int64_t* __restrict__ row_ptr, int64_t rows,
                                        int32_t* __restrict__ lengths) {
  const int64_t row = thread_of_grid();
  if (row < rows) lengths[row] = row_ptr && row_ptr[row] < row_ptr[row + 1];
}

// Puts the diagonal first in every row, unless there is no row_ptr; what follows goes to the cursors.
// Mapping:  one thread per row.
// Reads:    row_ptr and distance_ptr int64, coalesced.
// Writes:   cursors [rows] int64, once, coalesced; keys uint64, at most one a row.
// Limits:   rows < 2^31; the caller checks.
// Cost:     32 bytes of memory traffic per row; memory-bound.
__global__ void diagonal_kernel(const int64_t* __restrict__ row_ptr, const int64_t* __restrict__ distance_ptr,
                                int64_t rows, unsigned long long* __restrict__ cursors, uint64_t* __restrict__ keys) {
  const int64_t row = thread_of_grid();
  if (row >= rows) return;
  int64_t at = distance_ptr[row];
  if (row_ptr && row_ptr[row] < row_ptr[row + 1]) keys[at++] = packed(static_cast<int32_t>(row), 0);  // distance 0.0
  cursors[row] = static_cast<unsigned long long>(at);
}

// Puts every pair into both of its rows.
// Mapping:  one thread per pair.
// Reads:    pairs [num_pairs, 2] int32 and distances [num_pairs] float32, once, coalesced.
// Writes:   cursors by atomicAdd; keys uint64, two a pair, scattered.
// Limits:   room for all at the cursors; the caller counted.
// Cost:     12 bytes read, two atomics and two scattered writes of 8 bytes per pair; bound by atomics in L2.
__global__ void mirror_kernel(const int32_t* __restrict__ pairs, const float* __restrict__ distances, int64_t num_pairs,
                              unsigned long long* cursors, uint64_t* __restrict__ keys) {
  const int64_t t = thread_of_grid();
  if (t >= num_pairs) return;
  const int32_t i = pairs[2 * t], j = pairs[2 * t + 1];
  const uint32_t distance = float_bits(distances[t]);
  keys[take(&cursors[i])] = packed(j, distance);
  keys[take(&cursors[j])] = packed(i, distance);
}

// Takes keys apart.
// Mapping:  one thread per key.
// Reads:    keys [count] uint64, once, coalesced.
// Writes:   col_idx [count] int32 and values [count] float32, once, coalesced.
// Limits:   1 <= count; the caller checks.
// Cost:     16 bytes of memory traffic per key; memory-bound.
__global__ void unpack_kernel(const uint64_t* __restrict__ keys, int64_t count, int32_t* __restrict__ col_idx,
                              float* __restrict__ values) {
  const int64_t t = thread_of_grid();
  if (t >= count) return;
  col_idx[t] = high_half(keys[t]);
  values[t] = bits_float(static_cast<uint32_t>(low_half(keys[t])));
}

}  // namespace
}  // namespace dmic

using namespace dmic;

const char* dmic_launch_jaccard_count(const int32_t* indices, int64_t num_indices, int32_t* counts, void* stream) {
  return launch(count_kernel, blocks_for(num_indices, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream),
                indices, num_indices, counts);
}

const char* dmic_launch_jaccard_lists(const int64_t* row_ptr, const int32_t* col_idx, const int32_t* values,
                                      int64_t rows, int64_t first_row, unsigned long long* cursors, uint64_t* lists,
                                      void* stream) {
  return launch(lists_kernel, blocks_for(rows, kRowsPerBlock), kThreads, 0, static_cast<cudaStream_t>(stream), row_ptr,
                col_idx, values, rows, first_row, cursors, lists);
}

const char* dmic_launch_jaccard_sort(const int64_t* ptr, int64_t segments, uint64_t* keys, int64_t shared_capacity,
                                     int threads, void* stream) {
  return launch(sort_kernel, segments, threads, shared_capacity * sizeof(uint64_t), static_cast<cudaStream_t>(stream),
                ptr, keys, shared_capacity);
}

const char* dmic_launch_jaccard_weigh(const int32_t* col_idx, const int32_t* values, int64_t count, uint64_t* keys,
                                      void* stream) {
  return launch(weigh_kernel, blocks_for(count, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream), col_idx,
                values, count, keys);
}

const char* dmic_launch_jaccard_plan(const int64_t* row_ptr, int64_t first_row, int64_t rows, const uint64_t* keys,
                                     const int64_t* list_ptr, const uint64_t* lists, JaccardScan* plan, int64_t* tiles,
                                     void* stream) {
  return launch(plan_kernel, blocks_for(rows, kRowsPerBlock), kThreads, 0, static_cast<cudaStream_t>(stream), row_ptr,
                first_row, rows, keys, list_ptr, lists, plan, tiles);
}

const char* dmic_launch_jaccard_join(const JaccardJoin* join, int64_t capacity, int64_t max_probes, int threads,
                                     void* stream) {
  const int64_t blocks = std::min(join->rows, num_multiprocessors() * kBlocksPerMultiprocessor);
  return launch(join_kernel, blocks, threads, capacity * SharedTable::kBytesPerSlot, static_cast<cudaStream_t>(stream),
                *join, capacity, max_probes);
}

const char* dmic_launch_jaccard_join_spilled(const JaccardJoin* join, int64_t num_spilled, int32_t* overlaps,
                                             int32_t* candidates, int64_t slots, int64_t all_rows, int threads,
                                             void* stream) {
  return launch(join_spilled_kernel, slots, threads, 0, static_cast<cudaStream_t>(stream), *join, num_spilled, overlaps,
                candidates, all_rows);
}

const char* dmic_launch_jaccard_diagonal_lengths(const int64_t* row_ptr, int64_t rows, int32_t* lengths,
                                                 void* stream) {
  return launch(diagonal_lengths_kernel, blocks_for(rows, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream),
                row_ptr, rows, lengths);
}

const char* dmic_launch_jaccard_diagonal(const int64_t* row_ptr, const int64_t* distance_ptr, int64_t rows,
                                         unsigned long long* cursors, uint64_t* keys, void* stream) {
  return launch(diagonal_kernel, blocks_for(rows, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream), row_ptr,
                distance_ptr, rows, cursors, keys);
}

const char* dmic_launch_jaccard_mirror(const int32_t* pairs, const float* distances, int64_t num_pairs,
                                       unsigned long long* cursors, uint64_t* keys, void* stream) {
  return launch(mirror_kernel, blocks_for(num_pairs, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream), pairs,
                distances, num_pairs, cursors, keys);
}

const char* dmic_launch_jaccard_unpack(const uint64_t* keys, int64_t count, int32_t* col_idx, float* values,
                                       void* stream) {
  return launch(unpack_kernel, blocks_for(count, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream), keys, count,
                col_idx, values);
}
