// C interface of the kernels: raw pointers, sizes, stream; CUDA types erased so that the torch side needs no toolkit.
// The structure of row_ptr [rows + 1] and col_idx [nnz] is sound, rows >= 1. Each returns nullptr, or why the launch failed.
#pragma once

#include <cstdint>

// core [rows]: has a sample min_samples within eps, itself included? parent [rows]: every sample is its own root.
// bad_values and balance, int64 [1] each on the device, preset to zero: the number of lanes that saw values [nnz] that
// are negative or NaN, and the sum of the hashes of canonical/pair_hash.h, zero if the matrix is symmetric.
extern "C" const char* dmic_launch_dbscan_core(const int64_t* row_ptr, int64_t rows, const int32_t* col_idx,
                                               const float* values, float eps, int64_t min_samples, bool* core,
                                               int32_t* parent, unsigned long long* bad_values,
                                               unsigned long long* balance, void* stream);

// Joins the trees of core samples within eps: parents are core samples of lower index of the same cluster.
extern "C" const char* dmic_launch_dbscan_join(const int64_t* row_ptr, int64_t rows, const int32_t* col_idx,
                                               const float* values, float eps, const bool* core, int32_t* parent,
                                               void* stream);

// parent: the root of every sample, which is the lowest core index of its cluster. is_first [rows] int32: is this a core
// sample and its own root?
extern "C" const char* dmic_launch_dbscan_flatten(int64_t rows, const bool* core, int32_t* parent, int32_t* is_first,
                                                  void* stream);

// labels [rows] from cluster_of [rows + 1]: the number of the cluster whose root a sample is.
extern "C" const char* dmic_launch_dbscan_label(const int64_t* row_ptr, int64_t rows, const int32_t* col_idx,
                                                const float* values, float eps, const bool* core, const int32_t* parent,
                                                const int64_t* cluster_of, int64_t* labels, void* stream);
