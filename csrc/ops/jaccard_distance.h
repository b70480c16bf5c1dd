// jaccard_distance(encoding, max_distance, max_pairs, split, num_cols) -> Csr (row_ptr, col_idx, values)
//
// encoding      row_ptr int64 [N + 1], col_idx int32 [nnz], values int32 [nnz]; rows sum to 2^30 or are empty.
// max_distance  in [0, 1]; rounded to float32, as a comparison with the returned distances would be.
// max_pairs     an error is raised as soon as more pairs i < j are within max_distance; negative: no limit.
// split         0, or only pairs i < split <= j are wanted, and no diagonal; at most N.
// num_cols      col_idx is in [0, num_cols); -1: N. More than N if the encoding is a part of a gallery's rows.
// row_ptr       int64 [N + 1]; col_idx int32 [nnz] in [0, N), ascending in a row; values float32 [nnz].
//
// J = 1 - s / (2 - s), s = sum over columns of the smaller value. Every pair with s > 0 and J <= max_distance is
// returned, in both directions and, without a split, with the diagonal; other pairs are farther, and those with s = 0
// have J = 1.
#pragma once

#include "checks.h"

namespace dmic {

inline void check_jaccard_distance_args(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                        double max_distance, int64_t split, int64_t num_cols) {
  check_csr("jaccard_distance", row_ptr, col_idx, values, ScalarType::Int);
  DMIC_CHECK(max_distance >= 0.0 && max_distance <= 1.0,
             "jaccard_distance: max_distance must be in [0, 1], got ", max_distance);
  check_num_cols("jaccard_distance", num_cols);
  DMIC_CHECK(split >= 0 && split < row_ptr.size(0), "jaccard_distance: split must be in [0, N], got split=", split,
             " with N=", row_ptr.size(0) - 1);
}

}  // namespace dmic
