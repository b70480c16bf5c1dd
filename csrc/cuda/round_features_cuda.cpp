#include "../ops/round_features.h"

#include "kernels/round_features.cuh"
#include "launch.h"

namespace dmic {
namespace {

std::tuple<Tensor, Tensor> round_features_cuda(const Tensor& features, int64_t exponent) {
  check_round_features_args(features, exponent);
  const CurrentDevice device(features);
  const Tensor dense = torch::stable::contiguous(features);
  const int64_t rows = features.size(0), d = features.size(1);
  Tensor rounded = new_tensor(features, {rows, d}, ScalarType::Half);
  Tensor residual_norm = new_tensor(features, {rows}, ScalarType::Float);
  if (rows == 0) return {rounded, residual_norm};
  Tensor bad_row =
      torch::stable::full({1}, static_cast<double>(rows), ScalarType::Long, std::nullopt, features.device());
  check_launch("round_features",
               dmic_launch_round_features(dense.const_data_ptr<float>(), rows, d, power_of_two(exponent),
                                          static_cast<uint16_t*>(rounded.mutable_data_ptr()),
                                          residual_norm.mutable_data_ptr<float>(),
                                          static_cast<unsigned long long*>(bad_row.mutable_data_ptr()),
                                          device.stream()));
  const torch::stable::Device cpu("cpu");
  const int64_t row = *torch::stable::to(bad_row, std::nullopt, std::nullopt, cpu).const_data_ptr<int64_t>();
  if (row < rows) {
    const Tensor bad = torch::stable::to(torch::stable::select(dense, 0, row), std::nullopt, std::nullopt, cpu);
    report_bad_row(bad.const_data_ptr<float>(), row, d, exponent);
  }
  return {rounded, residual_norm};
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, DMIC_CUDA_KEY, m) { m.impl("round_features", TORCH_BOX(&dmic::round_features_cuda)); }
