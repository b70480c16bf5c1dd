// Operations: N d. Reads 4 N d bytes, writes 2 N d.
#include "../ops/round_features.h"

#include "../canonical/dot.h"
#include "../canonical/half.h"
#include "parallel.h"

namespace dmic {
namespace {

constexpr int64_t kRowsPerChunk = 64;

std::tuple<Tensor, Tensor> round_features_cpu(const Tensor& features, int64_t exponent) {
  check_round_features_args(features, exponent);
  const Tensor dense = torch::stable::contiguous(features);
  const int64_t rows = features.size(0), d = features.size(1);
  Tensor rounded = new_tensor(features, {rows, d}, ScalarType::Half);
  Tensor residual_norm = new_tensor(features, {rows}, ScalarType::Float);
  if (rows == 0) return {rounded, residual_norm};
  const float* in = dense.const_data_ptr<float>();
  uint16_t* out = static_cast<uint16_t*>(rounded.mutable_data_ptr());
  float* norms = residual_norm.mutable_data_ptr<float>();
  const double power = power_of_two(exponent);
  Progress progress("round_features", rows);
  for_each_chunk(progress, rows, kRowsPerChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sums[kDotLanes] = {};
      bool bad = false;
      for (int64_t k = 0; k < d; ++k) {
        const double scaled = static_cast<double>(in[i * d + k]) * power;  // exact
        bad |= !(std::fabs(scaled) <= kMaxHalf);
        const uint16_t half = half_from_float(static_cast<float>(scaled));
        const double residual = scaled - static_cast<double>(float_from_half(half));
        out[i * d + k] = half;
        sums[k % kDotLanes] += residual * residual;
      }
      norms[i] = norm_above(fold_dot_lanes(sums));
      if (bad) report_bad_row(in + i * d, i, d, exponent);
    }
    progress.add(end - begin);
  });
  progress.finish();
  return {rounded, residual_norm};
}

}  // namespace
}  // namespace dmic

STABLE_TORCH_LIBRARY_IMPL(dmic, CPU, m) { m.impl("round_features", TORCH_BOX(&dmic::round_features_cpu)); }
