// C interface of the kernels: raw pointers, sizes, stream. Each returns nullptr, or why the launch failed.
#pragma once

#include <cstdint>

extern "C" {

// norm_sq float64 [rows]; largest [1]: the bits of the largest one, preset to 0; not finite if any feature is not.
const char* dmic_launch_knn_graph_norms(const float* features, int64_t rows, int64_t d, double* norm_sq,
                                        unsigned long long* largest, void* stream);

// What the filter knows of a row, in scaled units; see knn_graph.cu. bounds float32 [rows, 4]; rows are compared in `blocks`.
// count int32 [rows]: entries of its list after the diagonal tile, none with 0 blocks; limit, reach float32 [rows].
// farthest float32 [rows] or null here and below: what is beyond is in no list.
const char* dmic_launch_knn_graph_start(const double* norm_sq, const float* residual_norm, int64_t rows, int64_t d,
                                        double scale, int64_t blocks, const float* farthest, float* bounds,
                                        int32_t* count, float* limit, float* reach, void* stream);

// Does the current device have the shared memory that large tiles take?
bool dmic_knn_graph_large_tiles_fit();

// The most samples of a block of rows that is compared with another block, for either of the two tile sizes.
int64_t dmic_knn_graph_block(bool large_tiles);

// Tiles (b, (b + shift) mod blocks) for every block b and first_shift <= shift < first_shift + shifts. With a split, b is
// of the side with fewer blocks and meets (b more / fewer + shift) mod more of the other: spread evenly, so that all of
// these have seen as much.
// rounded float16 [rows, d], d a multiple of 8; lists uint64 [rows, capacity], capacity >= the block.
const char* dmic_launch_knn_graph_compare(const uint16_t* rounded, int64_t rows, int64_t d, int64_t split,
                                          bool large_tiles, int64_t first_shift, int64_t shifts, const float* bounds,
                                          const float* limit, uint64_t* lists, int64_t capacity, int32_t* count,
                                          void* stream);

// Tightens limit and reach of every row, and drops the candidates that are beyond them.
const char* dmic_launch_knn_graph_compact(const double* norm_sq, double scale, int64_t rows, int64_t k1,
                                          const float* bounds, uint64_t* lists, int64_t capacity, int32_t* count,
                                          float* limit, float* reach, uint8_t* overflowed, void* stream);

// Exact distances of the candidates, in order; rows without a certificate go to redo [rows], redo_count [1] int64.
const char* dmic_launch_knn_graph_finish(const float* features, const double* norm_sq, int64_t rows, int64_t d,
                                         int64_t k1, const uint64_t* lists, int64_t capacity, const int32_t* count,
                                         const float* reach, const uint8_t* overflowed, const float* farthest,
                                         int32_t* neighbor_idx, float* neighbor_dist, int32_t* redo,
                                         unsigned long long* redo_count, void* stream);

// Rows redo[0, num_redo) against all, or against the other side. Scratch: distances float32 [num_redo, rows], keys uint64
// [num_redo, k1].
const char* dmic_launch_knn_graph_redo(const float* features, const double* norm_sq, int64_t rows, int64_t d, int64_t k1,
                                       int64_t split, const float* farthest, const int32_t* redo, int64_t num_redo,
                                       float* distances, uint64_t* keys, int32_t* neighbor_idx, float* neighbor_dist,
                                       void* stream);
}
