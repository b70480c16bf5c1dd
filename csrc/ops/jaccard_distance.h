// jaccard_distance(encoding, max_distance, max_pairs, partners, num_cols) -> Csr (row_ptr, col_idx, values)
//
// encoding      row_ptr int64 [n + 1], col_idx int32 [nnz], values int32 [nnz]; rows sum to 2^30 or are empty.
// max_distance  in [0, 1]; rounded to float32, as a comparison with the returned distances would be.
// max_pairs     an error is raised as soon as more pairs are within max_distance; negative: no limit.
// partners      m more rows of the same kind, numbered from n on, or none. With them only pairs of a row of `encoding`
//               and one of these are wanted, and no diagonal. N = n + m is less than 2^31.
// num_cols      col_idx is in [0, num_cols); -1: n. More than n if the encoding is a part of a gallery's rows.
// row_ptr       int64 [N + 1]; col_idx int32 [nnz] in [0, N), ascending in a row; values float32 [nnz].
//
// J = 1 - s / (2 - s), s = sum over columns of the smaller value. Every pair with s > 0 and J <= max_distance is
// returned, in both directions and, without partners, with the diagonal; other pairs are farther, and those with s = 0
// have J = 1.
#pragma once

#include "checks.h"

namespace dmic {

inline void check_jaccard_distance_args(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                        double max_distance, const OptionalTensor& partner_row_ptr,
                                        const OptionalTensor& partner_col_idx, const OptionalTensor& partner_values,
                                        int64_t num_cols) {
  check_csr("jaccard_distance", row_ptr, col_idx, values, ScalarType::Int);
  DMIC_CHECK(max_distance >= 0.0 && max_distance <= 1.0,
             "jaccard_distance: max_distance must be in [0, 1], got ", max_distance);
  check_num_cols("jaccard_distance", num_cols);
  DMIC_CHECK(partner_row_ptr.has_value() == partner_col_idx.has_value() &&
                 partner_row_ptr.has_value() == partner_values.has_value(),
             "jaccard_distance: partners must be given with row_ptr, col_idx and values, or not at all");
  if (!partner_row_ptr) return;
  check_csr("jaccard_distance: partners", *partner_row_ptr, *partner_col_idx, *partner_values, ScalarType::Int);
  check_same_device("jaccard_distance", "partners", *partner_row_ptr, "encoding", row_ptr);
  DMIC_CHECK(row_ptr.size(0) - 1 + partner_row_ptr->size(0) - 1 <= kMaxSamples,
             "jaccard_distance: encoding and partners must have fewer than 2^31 rows in all, got ",
             row_ptr.size(0) - 1, " and ", partner_row_ptr->size(0) - 1);
}

}  // namespace dmic
