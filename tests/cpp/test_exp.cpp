// canonical/exp.h against expl.
#include <cmath>
#include <random>

#include "../../csrc/canonical/fixed_point.h"
#include "check.h"

namespace {

void check_close(double t) {
  const long double exact = std::exp(static_cast<long double>(t));
  const long double error = std::fabs(static_cast<long double>(dmic::canonical_exp(t)) / exact - 1);
  check(error < 0x1p-50L, "exp(", t, ") is off by ", error, " of itself");
}

void error_is_below_two_to_the_minus_50() {
  constexpr int kSteps = 400'000;
  for (int i = 0; i <= kSteps; ++i) check_close(-40.0 * i / kSteps);
  std::mt19937_64 random(1);
  for (int i = 0; i < kSteps; ++i) check_close(-std::ldexp(static_cast<double>(random()), -64 - i % 60));
}

// Where the argument is halfway between two multiples of ln 2, the polynomial is at its widest.
void error_is_as_small_where_the_reduction_changes() {
  for (int n = 0; n < 57; ++n) {
    double t = -(n + 0.5) * dmic::kLn2Hi;
    for (int step = 0; step < 200; ++step, t = std::nextafter(t, 0.0)) check_close(t);
  }
}

void ends_are_exact() {
  check(dmic::canonical_exp(0.0) == 1.0, "exp(0)");
  check(dmic::canonical_exp(-0.0) == 1.0, "exp(-0)");
  check(dmic::canonical_exp(-40.0) > 0.0, "-40 is not flushed");
  check(dmic::canonical_exp(std::nextafter(-40.0, -41.0)) == 0.0, "below -40 is flushed");
  check(dmic::canonical_exp(-1e300) == 0.0, "far below is flushed");
}

void fixed_exp_is_the_nearest_integer() {
  check(dmic::fixed_exp(0.0) == dmic::kShareOne, "fixed_exp(0) is one");
  check(dmic::fixed_exp(-100.0) == 0, "fixed_exp of far below");
  std::mt19937_64 random(2);
  for (int i = 0; i < 200'000; ++i) {
    const double t = -std::ldexp(static_cast<double>(random()), -64) * 45;
    const long double exact = std::exp(static_cast<long double>(t)) * 0x1p32L;
    const long double got = static_cast<long double>(dmic::fixed_exp(t));
    check(std::fabs(got - exact) < 0.5L + 0x1p-17L, "fixed_exp(", t, ") = ", got, ", not ", exact);
  }
}

}  // namespace

int main() {
  return check_claims({
      {"error is below 2^-50", error_is_below_two_to_the_minus_50},
      {"error is as small where the reduction changes", error_is_as_small_where_the_reduction_changes},
      {"ends are exact", ends_are_exact},
      {"fixed_exp is the nearest integer", fixed_exp_is_the_nearest_integer},
  });
}
