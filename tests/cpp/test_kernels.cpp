// The kernels through their C interface, without torch: emulated, against plain loops over the canonical headers.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "../../csrc/canonical/dot.h"
#include "../../csrc/canonical/half.h"
#include "../../csrc/cuda/kernels/round_features.cuh"
#include "../cuda_emulator/emulator.h"
#include "check.h"

namespace {

struct Rounded {
  Rounded(int64_t rows, int64_t d) : halves(rows * d), norms(rows), bad_row(static_cast<uint64_t>(rows)) {}
  bool operator==(const Rounded&) const = default;

  std::vector<uint16_t> halves;
  std::vector<float> norms;
  unsigned long long bad_row;
};

Rounded round_plainly(const std::vector<float>& features, int64_t rows, int64_t d, double power) {
  Rounded result(rows, d);
  for (int64_t i = rows - 1; i >= 0; --i) {
    double sums[dmic::kDotLanes] = {};
    for (int64_t k = 0; k < d; ++k) {
      const double scaled = features[i * d + k] * power;
      if (!(std::fabs(scaled) <= 65504.0)) result.bad_row = static_cast<uint64_t>(i);
      const uint16_t half = dmic::half_from_float(static_cast<float>(scaled));
      const double residual = scaled - static_cast<double>(dmic::float_from_half(half));
      result.halves[i * d + k] = half;
      sums[k % dmic::kDotLanes] += residual * residual;
    }
    result.norms[i] = dmic::norm_above(dmic::fold_dot_lanes(sums));
  }
  return result;
}

Rounded round_emulated(const std::vector<float>& features, int64_t rows, int64_t d, double power) {
  Rounded result(rows, d);
  const char* error = dmic_launch_round_features(features.data(), rows, d, power, result.halves.data(),
                                                 result.norms.data(), &result.bad_row, nullptr);
  check(!error, error ? error : "");
  return result;
}

void round_features_is_the_plain_loop() {
  std::mt19937_64 random(51);
  for (const int64_t rows : {1, 7, 8, 9, 33})
    for (const int64_t d : {1, 4, 31, 128, 131, 516}) {
      std::vector<float> features(rows * d);
      for (float& x : features) {
        const float mantissa = static_cast<float>(static_cast<int64_t>(random() >> 40) - (1 << 23));
        x = std::ldexp(mantissa, static_cast<int>(random() % 40) - 52);
      }
      if (d == 31) features[(rows / 2) * d + 17] = 1e9f;
      const Rounded want = round_plainly(features, rows, d, 4.0);
      for (long schedule = 0; schedule < 4; ++schedule) {
        emulator::configure(schedule, 2);
        const Rounded got = round_emulated(features, rows, d, 4.0);
        check(got == want, "other bits for ", rows, " rows of ", d, " under schedule ", schedule);
      }
    }
}

void a_launch_that_cannot_be_is_refused() {
  Rounded result(0, 0);
  const char* error = dmic_launch_round_features(nullptr, 0, 4, 1.0, nullptr, nullptr, nullptr, nullptr);
  check(error, "a grid without blocks was run");
}

}  // namespace

int main() {
  return check_claims({
      {"round_features is the plain loop", round_features_is_the_plain_loop},
      {"a launch that cannot be is refused", a_launch_that_cannot_be_is_refused},
  });
}
