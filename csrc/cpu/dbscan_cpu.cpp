// Degrees, union-find over core pairs, labels. The larger root is always hooked under the smaller one, so a root is the
// smallest core index of its cluster, whatever the order of the pairs.
// Operations: six passes over the stored pairs, three of them to check the arguments. Scratch: 4 N bytes.
#include "../ops/dbscan.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "csr_builder.h"
#include "dbscan_checks.h"
#include "parallel.h"

namespace dmic {
namespace {

constexpr int64_t kRowsPerChunk = 4096;

struct Graph : Distances {
  float eps;

  template <class Visit>
  void for_each_near(int64_t i, const Visit& visit) const {
    for (int64_t t = row_ptr[i]; t < row_ptr[i + 1]; ++t)
      if (values[t] <= eps) visit(col_idx[t]);
  }
};

int32_t find_root(std::vector<int32_t>& parent, int32_t i) {
  while (parent[i] != i) i = parent[i] = parent[parent[i]];  // path halving
  return i;
}

std::tuple<Tensor, Tensor> dbscan_cpu(const Tensor& row_ptr_in, const Tensor& col_idx_in, const Tensor& values_in,
                                      double eps, int64_t min_samples) {
  check_dbscan_args(row_ptr_in, col_idx_in, values_in, eps, min_samples);
  const Tensor row_ptr = torch::stable::contiguous(row_ptr_in), col_idx = torch::stable::contiguous(col_idx_in);
  const Tensor values = torch::stable::contiguous(values_in);
  const Graph in{{row_ptr.const_data_ptr<int64_t>(), col_idx.const_data_ptr<int32_t>(), values.const_data_ptr<float>(),
                  row_ptr.size(0) - 1},
                 static_cast<float>(eps)};
  Progress progress("dbscan", 3 * in.rows);
  check_csr_structure(progress, "dbscan", in.row_ptr, in.rows, in.rows, in.col_idx, col_idx.size(0));
  check_distances(progress, in);

  Tensor labels_out = new_tensor(row_ptr_in, {in.rows}, ScalarType::Long);
  Tensor core_out = new_tensor(row_ptr_in, {in.rows}, ScalarType::Bool);
  int64_t* labels = labels_out.mutable_data_ptr<int64_t>();
  bool* core = core_out.mutable_data_ptr<bool>();

  for_each_chunk(progress, in.rows, kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t degree = 1;  // the sample itself, stored or not
      in.for_each_near(i, [&](int32_t j) { degree += j != i; });
      core[i] = degree >= min_samples;
    }
    progress.add(end - begin);
  });

  std::vector<int32_t> parent(in.rows);
  for (int64_t i = 0; i < in.rows; ++i) parent[i] = static_cast<int32_t>(i);
  for (int64_t begin = 0; begin < in.rows && !progress.stopped(); begin += kRowsPerChunk) {
    const int64_t end = std::min(in.rows, begin + kRowsPerChunk);
    for (int64_t i = begin; i < end; ++i) {
      if (!core[i]) continue;
      in.for_each_near(i, [&](int32_t j) {
        if (j >= i || !core[j]) return;
        const int32_t p = find_root(parent, static_cast<int32_t>(i)), q = find_root(parent, j);
        if (p != q) parent[std::max(p, q)] = std::min(p, q);
      });
    }
    progress.add(end - begin);
    progress.poll();
  }

  int64_t clusters = 0;
  for (int64_t i = 0; i < in.rows; ++i) {  // a root comes before its members
    labels[i] = kNoise;
    if (!core[i]) continue;
    const int32_t root = find_root(parent, static_cast<int32_t>(i));
    labels[i] = root == i ? clusters++ : labels[root];
  }
  for_each_chunk(progress, in.rows, kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (core[i]) continue;
      int64_t label = std::numeric_limits<int64_t>::max();
      in.for_each_near(i, [&](int32_t j) {
        if (core[j]) label = std::min(label, labels[j]);
      });
      if (label != std::numeric_limits<int64_t>::max()) labels[i] = label;
    }
    progress.add(end - begin);
  });
  progress.finish();
  return {labels_out, core_out};
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, CPU, m) { m.impl("dbscan", TORCH_BOX(&dmic::dbscan_cpu)); }
