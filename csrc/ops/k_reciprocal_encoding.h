// k_reciprocal_encoding(features, neighbor_idx, k1_half) -> Csr (row_ptr, col_idx, values)
//
// features      float32 [N, d], finite.
// neighbor_idx  int32 [N, k1], distinct indices in [0, N) in each row, nearest first.
// k1_half       0 <= k1_half, k1_half + 1 <= k1: the half lists are the first k1_half + 1 columns.
// row_ptr       int64 [N + 1]; col_idx int32 [nnz] ascending in a row; values int32 [nnz] in units of 2^-30.
//
// Row i is the softmax of -(2 - 2 f_i . f_j) over the expanded k-reciprocal set of i. It sums to exactly 2^30, or
// is empty if i has no k-reciprocal neighbour (possible only if i is missing from its own list).
//
// Its three pieces are ops of their own, for whoever has all lists but not all features at once. One after the other,
// with `features` on both sides of the dot products, they give the same bits.
//
// k_reciprocal_sets(neighbor_idx, k1_half, begin, end) -> (row_ptr, col_idx)
//
// begin, end    0 <= begin <= end <= N: the rows wanted. Only theirs are checked to be distinct.
// row_ptr       int64 [end - begin + 1]; col_idx int32 [nnz]: the expanded k-reciprocal sets, ascending.
//
// sampled_dots(rows, others, row_ptr, col_idx, check_finite) -> dots
//
// rows          float32 [n, d], finite.   others  float32 [m, d], finite.
// row_ptr       int64 [n + 1]; col_idx int32 [nnz] in [0, m), ascending in a row: which products are wanted.
// check_finite  false where rows and others are known to be finite: nothing is raised then, and dots may not be.
// dots          float64 [nnz]: rows[i] . others[j] in the order of canonical/dot.h for each j stored in row i.
//
// k_reciprocal_weights(row_ptr, col_idx, dots) -> Csr (row_ptr, col_idx, values)
//
// row_ptr       int64 [n + 1]; col_idx int32 [nnz], not negative, ascending in a row; at most 2^30 in a row.
// dots          float64 [nnz], finite, below 2^1023 in magnitude.
// values        int32 in units of 2^-30: the softmax of -(2 - 2 dot) over each row, without what rounds to zero.
#pragma once

#include "checks.h"

namespace dmic {

inline void check_reciprocal_lists(const char* op, const Tensor& neighbor_idx, int64_t k1_half) {
  DMIC_CHECK(neighbor_idx.size(0) == 0 || (k1_half >= 0 && k1_half < neighbor_idx.size(1)), op,
             ": k1_half must be in [0, k1 - 1], got k1_half=", k1_half, " with k1=", neighbor_idx.size(1));
}

inline void check_k_reciprocal_encoding_args(const Tensor& features, const Tensor& neighbor_idx, int64_t k1_half) {
  const char* op = "k_reciprocal_encoding";
  check_features(op, features);
  check_neighbor_idx(op, neighbor_idx, features.size(0));
  check_same_device(op, "neighbor_idx", neighbor_idx, "features", features);
  check_reciprocal_lists(op, neighbor_idx, k1_half);
}

inline void check_k_reciprocal_sets_args(const Tensor& neighbor_idx, int64_t k1_half, int64_t begin, int64_t end) {
  const char* op = "k_reciprocal_sets";
  check_tensor(op, "neighbor_idx", neighbor_idx, 2, ScalarType::Int);
  const int64_t rows = neighbor_idx.size(0);
  DMIC_CHECK(rows <= kMaxSamples, op, ": neighbor_idx must have fewer than 2^31 rows, got ", rows);
  check_reciprocal_lists(op, neighbor_idx, k1_half);
  DMIC_CHECK(begin >= 0 && begin <= end && end <= rows, op,
             ": begin and end must be 0 <= begin <= end <= N, got begin=", begin, " and end=", end, " with N=", rows);
}

inline void check_sampled_dots_args(const Tensor& rows, const Tensor& others, const Tensor& row_ptr,
                                    const Tensor& col_idx) {
  const char* op = "sampled_dots";
  check_features(op, rows, "rows");
  check_features(op, others, "others");
  DMIC_CHECK(others.size(1) == rows.size(1), op, ": others must have as many columns as rows (", rows.size(1),
             "), got shape ", shape_text(others));
  check_pattern(op, row_ptr, col_idx);
  DMIC_CHECK(row_ptr.size(0) - 1 == rows.size(0), op, ": row_ptr must have one entry more than rows has rows (",
             rows.size(0), "), got shape ", shape_text(row_ptr));
  check_same_device(op, "others", others, "rows", rows);
  check_same_device(op, "row_ptr", row_ptr, "rows", rows);
}

inline void check_k_reciprocal_weights_args(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& dots) {
  check_csr("k_reciprocal_weights", row_ptr, col_idx, dots, ScalarType::Double, "dots");
}

}  // namespace dmic
