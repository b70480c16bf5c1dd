// C interface of the kernels: raw pointers, sizes, stream; CUDA types erased so that the torch side needs no toolkit.
// Each works on rows [first_row, last_row), at least one, and returns nullptr or why the launch failed.
#pragma once

#include <cstdint>

#include "../../canonical/annotate.h"

namespace dmic {

constexpr int kMaskBits = 32;
DMIC_HOST_DEVICE constexpr int64_t mask_words(int64_t bits) { return (bits + kMaskBits - 1) / kMaskBits; }

constexpr int64_t kExpandWarps = 4;  // of a block of the expansion; each has two sets of samples as scratch

}  // namespace dmic

// Bit t of a row of reciprocal_mask [rows, mask_words(k1)]: the t-th neighbour of the row has it in its list; of
// half_mask [rows, mask_words(half)]: the same for the first `half` columns of both.
extern "C" const char* dmic_launch_mark_reciprocal(const int32_t* neighbor_idx, int64_t first_row, int64_t last_row,
                                                   int64_t k1, int64_t half, uint32_t* reciprocal_mask,
                                                   uint32_t* half_mask, void* stream);

// More blocks than these of the expansion do not run at the same time.
extern "C" int64_t dmic_expand_reciprocal_blocks();

// The expanded sets. Without row_ptr: their sizes, lengths [last_row - first_row]. With it [last_row - first_row + 1]:
// their members to col_idx, in no order.
// sets [blocks, kExpandWarps, 2, mask_words(rows)] is zero, and is left so.
extern "C" const char* dmic_launch_expand_reciprocal(const int32_t* neighbor_idx, int64_t rows, int64_t first_row,
                                                     int64_t last_row, int64_t k1, int64_t half,
                                                     const uint32_t* reciprocal_mask, const uint32_t* half_mask,
                                                     uint32_t* sets, int64_t blocks, int32_t* lengths,
                                                     const int64_t* row_ptr, int32_t* col_idx, void* stream);

// Sorts the columns of each row, in shared memory if they are at most `capacity`.
extern "C" const char* dmic_launch_sort_rows(const int64_t* row_ptr, int64_t first_row, int64_t last_row,
                                             int64_t capacity, int32_t* col_idx, void* stream);

// dots [nnz]: of each row of rows [*, d] with the rows of others [*, d] that its columns name.
extern "C" const char* dmic_launch_sampled_dots(const float* rows, const float* others, int64_t first_row,
                                                int64_t last_row, int64_t d, const int64_t* row_ptr,
                                                const int32_t* col_idx, double* dots, void* stream);

// values [nnz]: the shares of each row, zeros among them; lengths [rows]: how many are not zero. wrong [1], preset to
// zero, becomes 1 where a row cannot be weighed: too long, or a dot product that is not below kDotLimit in magnitude.
extern "C" const char* dmic_launch_weigh_members(int64_t first_row, int64_t last_row, const int64_t* row_ptr,
                                                 const double* dots, int32_t* values, int32_t* lengths,
                                                 unsigned long long* wrong, void* stream);

// Copies what is not zero to the rows of row_ptr_out.
extern "C" const char* dmic_launch_drop_zeros(const int64_t* row_ptr, const int32_t* col_idx, const int32_t* values,
                                              int64_t first_row, int64_t last_row, const int64_t* row_ptr_out,
                                              int32_t* col_idx_out, int32_t* values_out, void* stream);
