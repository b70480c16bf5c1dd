#include "../ops/round_features.h"

#include "kernels/round_features.cuh"
#include "launch.h"

namespace dmic {
namespace {

std::tuple<Tensor, Tensor> round_features_cuda(const Tensor& features, int64_t exponent) {
  check_round_features_args(features, exponent);
  const CurrentDevice device(features);
  const Tensor dense = as_dense(features);
  const int64_t rows = features.size(0), d = features.size(1);
  Tensor rounded = new_tensor(features, {rows, d}, ScalarType::Half);
  Tensor residual_norm = new_tensor(features, {rows}, ScalarType::Float);
  if (rows == 0) return {rounded, residual_norm};
  Tensor bad_row = full_int64(features, 1, rows);
  check_launch("round_features",
               dmic_launch_round_features(dense.const_data_ptr<float>(), rows, d, power_of_two(exponent),
                                          static_cast<uint16_t*>(rounded.mutable_data_ptr()),
                                          residual_norm.mutable_data_ptr<float>(),
                                          static_cast<unsigned long long*>(bad_row.mutable_data_ptr()),
                                          device.stream()));
  const int64_t row = read_int64(bad_row);
  if (row < rows) {
    const Tensor bad = to_cpu(torch::stable::select(dense, 0, row));
    report_bad_row(bad.const_data_ptr<float>(), row, d, exponent);
  }
  return {rounded, residual_norm};
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) { m.impl("round_features", TORCH_BOX(&dmic::round_features_cuda)); }
