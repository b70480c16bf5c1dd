// dbscan(distance, eps, min_samples) -> (labels, core_mask)
//
// distance     row_ptr int64 [N + 1], col_idx int32 [nnz] in [0, N), values float32 [nnz]; symmetric. Pairs that are
//              not stored are farther than eps; a sample always counts itself, stored or not.
// eps          >= 0, rounded to float32: a pair is within eps if values <= eps.
// min_samples  >= 1, counts the sample itself.
// labels       int64 [N]: clusters numbered by their smallest core index; a border sample joins the lowest-numbered
//              cluster that has a core sample within eps; -1 is noise. Equal to scikit-learn's.
// core_mask    bool [N].
#pragma once

#include "checks.h"

namespace dmic {

constexpr int64_t kNoise = -1;

inline void check_dbscan_args(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, double eps,
                              int64_t min_samples) {
  check_csr("dbscan", row_ptr, col_idx, values, ScalarType::Float);
  DMIC_CHECK(eps >= 0.0, "dbscan: eps must be at least 0, got ", eps);
  DMIC_CHECK(min_samples >= 1, "dbscan: min_samples must be at least 1, got ", min_samples);
}

}  // namespace dmic
