// C interface of the kernels: raw pointers, sizes, stream; CUDA types erased so that the torch side needs no toolkit.
// Each works on rows [first_row, last_row), at least one, and returns nullptr or why the launch failed.
#pragma once

#include <cstdint>

#include "../../canonical/annotate.h"

namespace dmic {

constexpr int64_t kSlotBytes = 16;  // of a table of columns: 8 of a sum, 4 of a column, 4 of a list

// Slots of a table for at most `columns` columns: a power of two, at most three quarters full.
DMIC_HOST_DEVICE constexpr int64_t table_slots(int64_t columns) {
  int64_t slots = 8;
  while (slots / 4 * 3 < columns) slots *= 2;
  return slots;
}

}  // namespace dmic

// The first k2 entries of a row of neighbor_idx [rows, k1] are its members, rows of an encoding that has any number of
// rows and num_cols columns; those with an empty row do not count.
// numerators [rows, k2]: the weight of each member, 0 if it does not count; totals [rows]: their sum; bounds [rows]:
// the expanded row has no more columns. camera_mask [rows, ceil(k2 / 32)] is scratch. camera_ids and modality_ids,
// one for each row of the encoding, may be null.
extern "C" const char* dmic_launch_weigh_neighbors(const int64_t* row_ptr, const int32_t* neighbor_idx,
                                                   int64_t num_cols, int64_t first_row, int64_t last_row, int64_t k1,
                                                   int64_t k2,
                                                   const int64_t* camera_ids, const int64_t* modality_ids,
                                                   uint32_t* camera_mask, unsigned long long* numerators,
                                                   unsigned long long* totals, int64_t* bounds, void* stream);

// More blocks than these of a merge do not run at the same time.
extern "C" int64_t dmic_merge_blocks();

// The expanded rows whose table has at most `shared_slots` slots or, if `tables` is given, those whose table has more.
// tables [blocks, slots_of_table, kSlotBytes] is scratch. Without row_ptr_out: their sizes, lengths [rows]. With it:
// their columns, ascending, and values.
extern "C" const char* dmic_launch_merge_neighbors(const int64_t* row_ptr, const int32_t* col_idx,
                                                   const int32_t* values, const int32_t* neighbor_idx,
                                                   int64_t first_row, int64_t last_row, int64_t k1, int64_t k2,
                                                   const unsigned long long* numerators,
                                                   const unsigned long long* totals, const int64_t* bounds,
                                                   int64_t shared_slots, void* tables, int64_t blocks, int threads,
                                                   int64_t slots_of_table, int32_t* lengths, const int64_t* row_ptr_out,
                                                   int32_t* col_idx_out, int32_t* values_out, void* stream);
