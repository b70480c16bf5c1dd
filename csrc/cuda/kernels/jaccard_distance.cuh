// C interface of the kernels: raw pointers, sizes, stream; CUDA types erased so that the torch side needs no toolkit.
// Every launcher returns nullptr, or why the launch failed. Counts of items are at least 1 everywhere.
#pragma once

#include <cstdint>

// The part of a column's list that one row scans: entries [first, first + count) and the row's own value there.
struct alignas(16) JaccardScan {
  int64_t first;
  int32_t count, value;
};

// What the join of rows [first_row, first_row + rows) reads and writes.
struct JaccardJoin {
  const int64_t* row_ptr;  // the rows that look for partners
  const int32_t* col_idx;
  const int32_t* values;
  const int64_t* partner_row_ptr;  // those that may be found: the same, or others
  const int32_t* partner_col_idx;
  const int32_t* partner_values;
  int64_t first_partner;    // the number of the first of them
  const uint64_t* lists;    // entries row << 32 | value
  const JaccardScan* plan;  // of the rows of this join: value t of the rows is at t - row_ptr[first_row]
  const int64_t* tiles;     // [rows] that each row would scan in full
  int64_t first_row, rows;
  int32_t threshold;    // smallest overlap of a pair that is wanted, at least 1
  int64_t verify_cost;  // of one candidate, in tiles
  int32_t* spilled_rows;  // [rows] those that the shared table is too small for
  int32_t* pairs;         // [pair_capacity, 2] i, j
  float* distances;       // [pair_capacity]
  int64_t pair_capacity;  // pairs found beyond it are counted, not written
  unsigned long long* counters;  // [kJaccardCounters], zero at first
};

enum JaccardCounter { kJaccardTicket, kJaccardSpilledTicket, kJaccardSpilled, kJaccardPairs, kJaccardCounters };

// counts [indices[t]] += 1.
extern "C" const char* dmic_launch_jaccard_count(const int32_t* indices, int64_t num_indices, int32_t* counts,
                                                 void* stream);

// The lists of rows that are numbered from first_row on. cursors, one int64 a column: where each list begins; moved to
// its end. Entries of a list come in no order.
extern "C" const char* dmic_launch_jaccard_lists(const int64_t* row_ptr, const int32_t* col_idx, const int32_t* values,
                                                 int64_t rows, int64_t first_row, unsigned long long* cursors,
                                                 uint64_t* lists, void* stream);

// Sorts every segment ascending; segment s is keys [ptr[s] - ptr[0], ptr[s + 1] - ptr[0]), less than 2^31 long. Those
// of at most `shared_capacity` keys are sorted in shared memory, longer ones where they are.
extern "C" const char* dmic_launch_jaccard_sort(const int64_t* ptr, int64_t segments, uint64_t* keys,
                                                int64_t shared_capacity, int threads, void* stream);

// keys [count]: those of the heaviest columns are the smallest.
extern "C" const char* dmic_launch_jaccard_weigh(const int32_t* col_idx, const int32_t* values, int64_t count,
                                                 uint64_t* keys, void* stream);

// plan and tiles of rows [first_row, first_row + rows), as in JaccardJoin, from the keys of their columns.
extern "C" const char* dmic_launch_jaccard_plan(const int64_t* row_ptr, int64_t first_row, int64_t rows,
                                                const uint64_t* keys, const int64_t* list_ptr, const uint64_t* lists,
                                                JaccardScan* plan, int64_t* tiles, void* stream);

// capacity: of the table in shared memory, a power of two, at most 2^16; max_probes: places that a row may have in it;
// threads: a multiple of 32.
extern "C" const char* dmic_launch_jaccard_join(const JaccardJoin* join, int64_t capacity, int64_t max_probes,
                                                int threads, void* stream);

// The first num_spilled of spilled_rows. overlaps and candidates [slots, all_rows] int32; overlaps all zero, before and
// after.
extern "C" const char* dmic_launch_jaccard_join_spilled(const JaccardJoin* join, int64_t num_spilled, int32_t* overlaps,
                                                        int32_t* candidates, int64_t slots, int64_t all_rows,
                                                        int threads, void* stream);

// lengths [rows] = 1 where the encoding has a row, else 0. Without a row_ptr: 0.
extern "C" const char* dmic_launch_jaccard_diagonal_lengths(const int64_t* row_ptr, int64_t rows, int32_t* lengths,
                                                            void* stream);

// Puts the diagonal into keys column << 32 | distance at distance_ptr, and cursors [rows] behind it. Without a row_ptr:
// no diagonal.
extern "C" const char* dmic_launch_jaccard_diagonal(const int64_t* row_ptr, const int64_t* distance_ptr, int64_t rows,
                                                    unsigned long long* cursors, uint64_t* keys, void* stream);

// Puts pairs into both their rows, in no order.
extern "C" const char* dmic_launch_jaccard_mirror(const int32_t* pairs, const float* distances, int64_t num_pairs,
                                                  unsigned long long* cursors, uint64_t* keys, void* stream);

extern "C" const char* dmic_launch_jaccard_unpack(const uint64_t* keys, int64_t count, int32_t* col_idx, float* values,
                                                  void* stream);
