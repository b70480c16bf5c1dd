// canonical/half.h against the definition of float16, against the compiler's own, and norm_above against sqrtl.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>

#include "../../csrc/canonical/half.h"
#include "check.h"

namespace {

constexpr uint16_t kInfinity = 0x7c00;  // every half below it is finite
constexpr float kFirstTooLarge = 65520.0f;

// The value of a finite half, from its sign, exponent and mantissa.
double value_of(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

void every_half_has_its_value() {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    if ((half & 0x7fff) >= kInfinity) continue;
    const float got = dmic::float_from_half(static_cast<uint16_t>(half));
    check(got == value_of(static_cast<uint16_t>(half)), "half ", half, " is ", got);
    check(std::signbit(got) == (half >= 0x8000), "the sign of half ", half);
    check(dmic::half_from_float(got) == half, "half ", half, " does not come back");
  }
}

// Rounding is decided between each half and the next: at the middle, and at the floats on both sides of it.
void between_two_halves_the_nearer_wins_and_ties_go_to_even() {
  for (uint16_t half = 0; half + 1 < kInfinity; ++half) {
    const uint16_t next = static_cast<uint16_t>(half + 1), even = half % 2 ? next : half;
    const float low = static_cast<float>(value_of(half)), high = static_cast<float>(value_of(next));
    const float middle = (low + high) / 2;
    const struct {
      float x;
      uint16_t want;
    } cases[] = {{std::nextafter(low, high), half}, {std::nextafter(middle, low), half}, {middle, even},
                 {std::nextafter(middle, high), next}, {std::nextafter(high, low), next}};
    for (const auto& c : cases) {
      check(dmic::half_from_float(c.x) == c.want, c.x, " becomes half ", dmic::half_from_float(c.x), ", not ", c.want);
      check(dmic::half_from_float(-c.x) == (c.want | 0x8000), -c.x, " loses its sign");
    }
  }
  check(dmic::half_from_float(std::nextafter(kFirstTooLarge, 0.0f)) == kInfinity - 1, "the largest that fits");
}

#if defined(__FLT16_MANT_DIG__)
void the_compiler_agrees() {
  constexpr uint32_t kStride = 61;  // one float in so many, of all that fit
  for (uint32_t bits = 0; bits < dmic::float_bits(kFirstTooLarge); bits += kStride) {
    const float x = dmic::bits_float(bits);
    const _Float16 theirs = static_cast<_Float16>(x);
    uint16_t want;
    std::memcpy(&want, &theirs, sizeof want);
    const uint16_t got = dmic::half_from_float(x);
    check(got == want, x, " becomes half ", got, ", not ", want);
  }
  for (uint32_t half = 0; half < kInfinity; ++half) {
    const uint16_t bits = static_cast<uint16_t>(half);
    _Float16 theirs;
    std::memcpy(&theirs, &bits, sizeof theirs);
    check(dmic::float_from_half(bits) == static_cast<float>(theirs), "half ", half, " widens to another float");
  }
}
#else
void the_compiler_agrees() { std::printf("skipped, this compiler has no _Float16: "); }
#endif

void norms_are_bounds_and_no_looser_than_two_floats() {
  std::mt19937_64 random(11);
  const auto test = [](double sum_sq) {
    const float bound = dmic::norm_above(sum_sq);
    const long double exact = std::sqrt(static_cast<long double>(sum_sq));
    check(bound >= exact, "the norm of ", sum_sq, " is above ", bound);
    const float below = std::nextafter(std::nextafter(bound, 0.0f), 0.0f);
    check(below < exact || bound < 0x1p-140f, "the bound of ", sum_sq, " is loose: ", bound);
  };
  for (int i = 0; i < 400'000; ++i) test(std::ldexp(static_cast<double>(random()) + 1.0, -64 - i % 280));
  for (int i = 0; i < 100'000; ++i) {  // squares of floats, and their neighbours: the bound must move with the last bit
    const float x = std::ldexp(static_cast<float>(random() >> 40) + 1.0f, i % 100 - 60);
    const double square = static_cast<double>(x) * x;
    for (const double sum_sq : {std::nextafter(square, 0.0), square, std::nextafter(square, 1e300)}) test(sum_sq);
  }
  check(dmic::norm_above(0.0) == 0.0f, "nothing lost is bounded by nothing");
  check(dmic::norm_above(1e-300) > 0.0f, "a tiny loss is still a loss");
}

}  // namespace

int main() {
  return check_claims({
      {"every half has its value", every_half_has_its_value},
      {"between two halves the nearer wins, ties go to even", between_two_halves_the_nearer_wins_and_ties_go_to_even},
      {"the compiler agrees", the_compiler_agrees},
      {"norms are bounds, and no looser than two floats", norms_are_bounds_and_no_looser_than_two_floats},
  });
}
