// One pass that checks the values and finds the core samples, one that joins them, one that labels. Scratch: 16 N bytes.
#include "../ops/dbscan.h"

#include "../cpu/dbscan_checks.h"
#include "input_checks.h"
#include "kernels/dbscan.cuh"
#include "launch.h"

namespace dmic {
namespace {

std::tuple<Tensor, Tensor> dbscan_cuda(const Tensor& row_ptr_in, const Tensor& col_idx_in, const Tensor& values_in,
                                       double eps_in, int64_t min_samples) {
  check_dbscan_args(row_ptr_in, col_idx_in, values_in, eps_in, min_samples);
  const CurrentDevice device(row_ptr_in);
  const Tensor row_ptr = as_dense(row_ptr_in), col_idx = as_dense(col_idx_in);
  const Tensor values = as_dense(values_in);
  const int64_t rows = row_ptr.size(0) - 1;
  const float eps = static_cast<float>(eps_in);
  Progress progress("dbscan", 3 * rows);
  check_csr_structure_on_device("dbscan", row_ptr, rows, col_idx, device.stream());

  Tensor labels = new_tensor(row_ptr, {rows}, ScalarType::Long);
  Tensor core_mask = new_tensor(row_ptr, {rows}, ScalarType::Bool);
  if (rows == 0) {
    progress.finish();
    return {labels, core_mask};
  }
  Tensor parent = new_tensor(row_ptr, {rows}, ScalarType::Int), is_first = new_tensor(row_ptr, {rows}, ScalarType::Int);
  Tensor wrong = full_int64(row_ptr, 2, 0);
  const int64_t* ptr = row_ptr.const_data_ptr<int64_t>();
  const int32_t* cols = col_idx.const_data_ptr<int32_t>();
  const float* distances = values.const_data_ptr<float>();
  bool* core = static_cast<bool*>(core_mask.mutable_data_ptr());
  int32_t* parents = parent.mutable_data_ptr<int32_t>();
  auto* words = static_cast<unsigned long long*>(wrong.mutable_data_ptr());
  check_launch("dbscan", dmic_launch_dbscan_core(ptr, rows, cols, distances, eps, min_samples, core, parents, words,
                                                 words + 1, device.stream()));
  if (read_int64(wrong, 0) != 0 || read_int64(wrong, 1) != 0) {
    const Tensor row_ptr_copy = to_cpu(row_ptr), col_idx_copy = to_cpu(col_idx), values_copy = to_cpu(values);
    raise_on_cpu("dbscan", rows, [&](Progress& checking) {
      check_distances(checking, {row_ptr_copy.const_data_ptr<int64_t>(), col_idx_copy.const_data_ptr<int32_t>(),
                                 values_copy.const_data_ptr<float>(), rows});
    });
  }
  progress.add(rows);
  progress.poll();

  check_launch("dbscan",
               dmic_launch_dbscan_join(ptr, rows, cols, distances, eps, core, parents, device.stream()));
  check_launch("dbscan", dmic_launch_dbscan_flatten(rows, core, parents, is_first.mutable_data_ptr<int32_t>(),
                                                    device.stream()));
  progress.add(rows);
  progress.poll();
  const Tensor cluster_of = row_ptr_of(is_first);
  check_launch("dbscan", dmic_launch_dbscan_label(ptr, rows, cols, distances, eps, core, parents,
                                                  cluster_of.const_data_ptr<int64_t>(),
                                                  labels.mutable_data_ptr<int64_t>(), device.stream()));
  progress.add(rows);
  progress.finish();
  return {labels, core_mask};
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) { m.impl("dbscan", TORCH_BOX(&dmic::dbscan_cuda)); }
