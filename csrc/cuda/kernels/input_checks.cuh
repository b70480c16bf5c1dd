// C interface of the kernels: raw pointers, sizes, stream; CUDA types erased so that the torch side needs no toolkit.
// wrong [1] int64 on the device: preset to zero, becomes 1 if anything is wrong. Each returns nullptr, or why the launch
// failed.
#pragma once

#include <cstdint>

// count >= 1 numbers that must be finite.
extern "C" const char* dmic_launch_check_finite(const float* features, int64_t count, unsigned long long* wrong,
                                                void* stream);

// neighbor_idx [rows, k], rows >= 1: entries in [0, samples), the first `distinct` of each row from first_row to last_row
// different from each other.
extern "C" const char* dmic_launch_check_neighbors(const int32_t* neighbor_idx, int64_t rows, int64_t k,
                                                   int64_t samples, int64_t distinct, int64_t first_row,
                                                   int64_t last_row, unsigned long long* wrong, void* stream);

// row_ptr [rows + 1], rows >= 0: from 0 to nnz, never decreasing.
extern "C" const char* dmic_launch_check_row_ptr(const int64_t* row_ptr, int64_t rows, int64_t nnz,
                                                 unsigned long long* wrong, void* stream);

// The rows of a sound row_ptr, rows >= 1: columns ascending in [0, num_cols); and of an encoding, unless values is
// null: positive, every row that is not empty summing to 2^30.
extern "C" const char* dmic_launch_check_rows(const int64_t* row_ptr, int64_t rows, int64_t num_cols,
                                              const int32_t* col_idx, const int32_t* values, unsigned long long* wrong,
                                              void* stream);
