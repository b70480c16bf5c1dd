// round_features(features, exponent) -> (rounded, residual_norm)
//
// features       float32 [N, d], finite.
// exponent       features are scaled by 2^exponent first; in [-126, 127], and no scaled value may leave float16.
// rounded        float16 [N, d]: features * 2^exponent, rounded to nearest even.
// residual_norm  float32 [N]: |features * 2^exponent - rounded|, Euclidean, rounded up: a bound that certificates use.
#pragma once

#include <cmath>
#include <iomanip>

#include "../canonical/half.h"
#include "checks.h"

namespace dmic {

inline void check_round_features_args(const Tensor& features, int64_t exponent) {
  check_features("round_features", features);
  DMIC_CHECK(exponent >= -126 && exponent <= 127, "round_features: exponent must be in [-126, 127], got ", exponent);
}

inline double power_of_two(int64_t exponent) { return std::ldexp(1.0, static_cast<int>(exponent)); }

// Raises for a row that a kernel found bad, with its first value that is not finite or leaves float16. Every backend
// reports the first bad row.
[[noreturn]] inline void report_bad_row(const float* features, int64_t row, int64_t d, int64_t exponent) {
  for (int64_t k = 0; k < d; ++k) {
    const double scaled = features[k] * power_of_two(exponent);
    DMIC_CHECK(std::isfinite(features[k]), "round_features: features must be finite, got ", features[k], " at row ",
               row, ", column ", k);
    DMIC_CHECK(std::fabs(scaled) <= kMaxHalf, std::setprecision(9),
               "round_features: features * 2^exponent must stay within 65504, got ", scaled, " at row ", row,
               ", column ", k, " with exponent=", exponent);
  }
  throw std::logic_error(concat("round_features: row ", row, " was found bad, but is not"));
}

}  // namespace dmic
