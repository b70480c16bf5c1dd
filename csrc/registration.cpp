// Every op schema and nothing else. Contracts are in ops/<op>.h, kernels in cpu/<op>_cpu.cpp and cuda/<op>_cuda.cpp;
// the pieces of k_reciprocal_encoding are in its files.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(dmic, m) {
  m.def(
      "knn_graph(Tensor features, int k1, int block_rows=0, Tensor? directions=None, int split=0, "
      "Tensor? farthest=None) -> (Tensor, Tensor, Tensor)");
  m.def("k_reciprocal_encoding(Tensor features, Tensor neighbor_idx, int k1_half) -> (Tensor, Tensor, Tensor)");
  m.def("k_reciprocal_sets(Tensor neighbor_idx, int k1_half, int begin, int end) -> (Tensor, Tensor)");
  m.def(
      "sampled_dots(Tensor rows, Tensor others, Tensor row_ptr, Tensor col_idx, bool check_finite=True) -> Tensor");
  m.def("k_reciprocal_weights(Tensor row_ptr, Tensor col_idx, Tensor dots) -> (Tensor, Tensor, Tensor)");
  m.def(
      "invariant_expansion(Tensor row_ptr, Tensor col_idx, Tensor values, Tensor neighbor_idx, int k2, "
      "Tensor? camera_ids=None, Tensor? modality_ids=None, int num_cols=-1) -> (Tensor, Tensor, Tensor)");
  m.def(
      "jaccard_distance(Tensor row_ptr, Tensor col_idx, Tensor values, float max_distance, int max_pairs=-1, "
      "Tensor? partner_row_ptr=None, Tensor? partner_col_idx=None, Tensor? partner_values=None, int num_cols=-1) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "dbscan(Tensor row_ptr, Tensor col_idx, Tensor values, float eps, int min_samples) -> (Tensor, Tensor)");
  m.def("round_features(Tensor features, int exponent) -> (Tensor, Tensor)");
}
