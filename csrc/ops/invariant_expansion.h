// invariant_expansion(encoding, neighbor_idx, k2, camera_ids?, modality_ids?, num_cols)
//     -> Csr (row_ptr, col_idx, values)
//
// encoding      row_ptr int64 [N + 1], col_idx int32 [nnz], values int32 [nnz]; rows sum to 2^30 or are empty.
// neighbor_idx  int32 [M, >= k2], distinct rows of the encoding in [0, N) in each row, nearest first.
// k2            1 <= k2 <= columns of neighbor_idx. 1 returns the encoding if M is N and num_cols is -1, else the rows
//               that neighbor_idx begins with.
// camera_ids    int64 [N], >= 0; absent: one camera.   modality_ids  int64 [N], >= 0; absent: one modality.
// num_cols      col_idx is in [0, num_cols); -1: N. More than N if the encoding is a part of a gallery's rows.
// row_ptr       int64 [M + 1]; col_idx int32 [nnz] ascending in a row; values int32 [nnz].
//
// Row i is the mean of the rows of its k2 nearest samples, nested: over the samples of a camera, over the cameras
// of a modality, over modalities; samples with an empty row are left out. Weights are floor(2^32 / share), rows
// are divided once (rounded down) and the rest goes to the largest value, lowest column first: they sum to 2^30.
#pragma once

#include "checks.h"

namespace dmic {

inline void check_invariant_expansion_args(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                           const Tensor& neighbor_idx, int64_t k2,
                                           const std::optional<Tensor>& camera_ids,
                                           const std::optional<Tensor>& modality_ids, int64_t num_cols) {
  const char* op = "invariant_expansion";
  check_csr(op, row_ptr, col_idx, values, ScalarType::Int);
  check_num_cols(op, num_cols);
  const int64_t rows = row_ptr.size(0) - 1;
  check_tensor(op, "neighbor_idx", neighbor_idx, 2, ScalarType::Int);
  DMIC_CHECK(neighbor_idx.size(0) <= kMaxSamples, op, ": neighbor_idx must have fewer than 2^31 rows, got ",
             neighbor_idx.size(0));
  check_same_device(op, "neighbor_idx", neighbor_idx, "row_ptr", row_ptr);
  DMIC_CHECK(neighbor_idx.size(0) == 0 || (k2 >= 1 && k2 <= neighbor_idx.size(1)), op,
             ": k2 must be in [1, k1], got k2=", k2, " with k1=", neighbor_idx.size(1));
  check_ids(op, "camera_ids", camera_ids, rows);
  check_ids(op, "modality_ids", modality_ids, rows);
  if (camera_ids) check_same_device(op, "camera_ids", *camera_ids, "row_ptr", row_ptr);
  if (modality_ids) check_same_device(op, "modality_ids", *modality_ids, "row_ptr", row_ptr);
}

// `ids` in CPU memory; null if absent.
inline void check_not_negative(const char* name, const int64_t* ids, int64_t rows) {
  for (int64_t i = 0; ids && i < rows; ++i)
    DMIC_CHECK(ids[i] >= 0, "invariant_expansion: ", name, " must not be negative, got ", ids[i], " at sample ", i);
}

}  // namespace dmic
