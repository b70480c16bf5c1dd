// knn_graph(features, k1, block_rows, directions, split, farthest) -> (neighbor_idx, neighbor_dist, num_redone)
//
// features       float32 [N, d], finite, contiguous. Norms are arbitrary.
// k1             1 <= k1 <= N (any k1 >= 0 when N == 0). Counts the sample itself.
// block_rows     size of the blocks of rows and columns that are compared at a time; 0 chooses. Changes no bit.
// directions     float32 [m, d] or none: orthonormal rows along which features vary most. The CPU compares samples along
//                them first; they change time, not a bit. A GPU has no use for them.
// split          0 <= split <= N. 0: every sample is compared with every sample. Otherwise rows [0, split) are compared
//                with rows [split, N) only, and a list is of the other side: the sample itself is not in it. Where
//                there are fewer than k1, it ends with index -1 and distance +infinity.
// farthest       float32 [N] or none, >= 0 or +infinity, only with a split: list i holds nothing beyond farthest[i].
//                The search starts from these thresholds.
// neighbor_idx   int32 [N, k1]: the k1 nearest samples of each sample, itself included, or of the other side.
// neighbor_dist  float32 [N, k1]: squared Euclidean distance, ascending; equal distances by ascending index.
// num_redone     int64 [1]: rows whose candidates were not proved complete, and that were compared with every sample.
//                Says what the search cost; differs between backends. The CPU re-scores on the way and has none.
//
// The distance is float32(|x|^2 + |y|^2 - 2 x.y) with the float64 sums of canonical/dot.h, never below zero.
// A sample can be missing from its own list only if it has k1 or more exact duplicates of lower index.
#pragma once

#include "checks.h"

namespace dmic {

inline void check_knn_graph_args(const Tensor& features, int64_t k1, int64_t block_rows,
                                 const std::optional<Tensor>& directions, int64_t split,
                                 const std::optional<Tensor>& farthest) {
  check_features("knn_graph", features);
  const int64_t rows = features.size(0);
  DMIC_CHECK(rows == 0 ? k1 >= 0 : k1 >= 1 && k1 <= rows, "knn_graph: k1 must be in [1, N], got k1=", k1,
             " with N=", rows);
  DMIC_CHECK(block_rows >= 0, "knn_graph: block_rows must be 0 (automatic) or positive, got ", block_rows);
  DMIC_CHECK(split >= 0 && split <= rows, "knn_graph: split must be in [0, N], got split=", split, " with N=", rows);
  if (directions) {
    check_tensor("knn_graph", "directions", *directions, 2, ScalarType::Float);
    check_same_device("knn_graph", "directions", *directions, "features", features);
    DMIC_CHECK(directions->size(1) == features.size(1) && directions->size(0) <= features.size(1),
               "knn_graph: directions must be rows of ", features.size(1), " columns, at most as many, got shape ",
               shape_text(*directions));
  }
  if (farthest) {
    check_tensor("knn_graph", "farthest", *farthest, 1, ScalarType::Float);
    check_same_device("knn_graph", "farthest", *farthest, "features", features);
    DMIC_CHECK(farthest->size(0) == rows, "knn_graph: farthest must have one value per sample (", rows, "), got ",
               farthest->size(0));
    DMIC_CHECK(split > 0 || rows == 0, "knn_graph: farthest needs a split, got split=0");
  }
}

inline void check_farthest(const float* farthest, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i)
    DMIC_CHECK(farthest[i] >= 0, "knn_graph: farthest must not be negative or NaN, got ", farthest[i], " at row ", i);
}

}  // namespace dmic
