// k_reciprocal_encoding(features, neighbor_idx, k1_half) -> Csr (row_ptr, col_idx, values)
//
// features      float32 [N, d], finite.
// neighbor_idx  int32 [N, k1], distinct indices in [0, N) in each row, nearest first.
// k1_half       0 <= k1_half, k1_half + 1 <= k1: the half lists are the first k1_half + 1 columns.
// row_ptr       int64 [N + 1]; col_idx int32 [nnz] ascending in a row; values int32 [nnz] in units of 2^-30.
//
// Row i is the softmax of -(2 - 2 f_i . f_j) over the expanded k-reciprocal set of i. It sums to exactly 2^30, or
// is empty if i has no k-reciprocal neighbour (possible only if i is missing from its own list).
#pragma once

#include "checks.h"

namespace dmic {

inline void check_k_reciprocal_encoding_args(const Tensor& features, const Tensor& neighbor_idx, int64_t k1_half) {
  check_features("k_reciprocal_encoding", features);
  check_neighbor_idx("k_reciprocal_encoding", neighbor_idx, features.size(0));
  check_same_device("k_reciprocal_encoding", "neighbor_idx", neighbor_idx, "features", features);
  DMIC_CHECK(features.size(0) == 0 || (k1_half >= 0 && k1_half < neighbor_idx.size(1)),
             "k_reciprocal_encoding: k1_half must be in [0, k1 - 1], got k1_half=", k1_half, " with k1=",
             neighbor_idx.size(1));
}

}  // namespace dmic
