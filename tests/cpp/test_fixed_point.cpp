// canonical/fixed_point.h and canonical/jaccard.h against integers of 128 bits and against scans.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "../../csrc/canonical/fixed_point.h"
#include "../../csrc/canonical/jaccard.h"
#include "check.h"

namespace {

using dmic::kOne;
__extension__ typedef unsigned __int128 Wide;

// Divisors and numerators at the ends of their ranges, at powers of two and next to them, and at random.
std::vector<uint64_t> extremes(uint64_t limit) {
  std::vector<uint64_t> values{1, 2, 3, limit};
  for (int bit = 1; bit < 64; ++bit)
    for (const int64_t offset : {-1, 0, 1}) {
      const uint64_t value = (uint64_t{1} << bit) + static_cast<uint64_t>(offset);
      if (value >= 1 && value <= limit) values.push_back(value);
    }
  std::mt19937_64 random(limit);
  for (int i = 0; i < 300; ++i) values.push_back(1 + (random() % limit >> random() % 20));
  return values;
}

void divide_share_is_the_integer_quotient() {
  std::mt19937_64 random(3);
  for (const uint64_t divisor : extremes(uint64_t{1} << 32)) {
    const double reciprocal = 1.0 / static_cast<double>(divisor);
    const uint64_t largest = divisor << dmic::kOneBits;
    const auto test = [&](uint64_t sum) {
      if (sum > largest) return;
      const int64_t want = static_cast<int64_t>(sum / divisor);
      const int64_t got = dmic::divide_share(sum, divisor, reciprocal);
      check(got == want, sum, " / ", divisor, " = ", got, ", not ", want);
    };
    for (const uint64_t sum : {uint64_t{0}, uint64_t{1}, largest - 1, largest}) test(sum);
    for (int i = 0; i < 400; ++i) {
      const uint64_t multiple = random() % ((uint64_t{1} << dmic::kOneBits) + 1) * divisor;
      for (const uint64_t sum : {multiple - 1, multiple, multiple + 1}) test(sum);
      test(random() % (largest + 1));
    }
  }
}

void fixed_share_is_the_integer_quotient() {
  for (const uint64_t total : extremes(uint64_t{1} << 40))
    for (const uint64_t weight : extremes(uint64_t{1} << 32)) {
      if (weight > total) continue;
      const int64_t want = static_cast<int64_t>((static_cast<Wide>(weight) << dmic::kOneBits) / total);
      check(dmic::fixed_share(weight, total) == want, weight, " of ", total);
    }
}

void a_whole_share_is_one() {
  for (const uint64_t total : extremes(uint64_t{1} << 32)) {
    check(dmic::fixed_share(total, total) == kOne, total, " of itself");
    check(dmic::fixed_share(0, total) == 0, "nothing of ", total);
  }
}

void share_numerators_do_not_exceed_one() {
  check(dmic::share_numerator(1, 1, 1) == dmic::kShareOne, "one sample of one camera of one modality");
  for (uint64_t modalities = 1; modalities < 4; ++modalities)
    for (uint64_t cameras = 1; cameras < 20; ++cameras)
      for (uint64_t members = 1; members < 200; ++members) {
        const uint64_t parts = modalities * cameras * members;
        const uint64_t whole = dmic::share_numerator(modalities, cameras, members) * parts;
        check(whole <= dmic::kShareOne && whole + parts > dmic::kShareOne, "one part of ", parts, " is rounded down");
      }
}

void jaccard_ends_are_exact() {
  check(dmic::jaccard_from_overlap(0) == 1.0f, "no overlap");
  check(dmic::jaccard_from_overlap(kOne) == 0.0f, "the same encoding");
  check(dmic::jaccard_from_overlap(kOne - 1) > 0.0f, "almost the same encoding");
}

// J = (2 - 2 s) / (2 - s), rounded to float64 and then to float32.
void jaccard_is_the_nearest_float_but_for_double_rounding() {
  std::mt19937_64 random(5);
  for (int i = 0; i < 300'000; ++i) {
    const int32_t s = static_cast<int32_t>(random() % (static_cast<uint64_t>(kOne) + 1) >> i % 30);
    const long double exact = (2 * static_cast<long double>(kOne) - 2 * static_cast<long double>(s)) /
                              (2 * static_cast<long double>(kOne) - static_cast<long double>(s));
    const float got = dmic::jaccard_from_overlap(s);
    const long double half_a_float = 0x1p-24L * std::ldexp(1.0L, std::ilogb(exact));
    check(std::fabs(got - exact) <= half_a_float * (1 + 0x1p-27L), "J(", s, ") = ", got, ", not ", exact);
  }
}

void jaccard_never_rises_with_the_overlap() {
  std::mt19937_64 random(6);
  constexpr int32_t kRun = 2000;
  for (int block = 0; block < 300; ++block) {
    int32_t begin = static_cast<int32_t>(random() % static_cast<uint64_t>(kOne - kRun));
    if (block == 0) begin = 0;
    if (block == 1) begin = kOne - kRun;
    for (int32_t s = begin; s < begin + kRun; ++s)
      check(dmic::jaccard_from_overlap(s + 1) <= dmic::jaccard_from_overlap(s), "J rises after ", s);
  }
}

void check_threshold(float max_distance) {
  const int32_t smallest = dmic::smallest_overlap_within(max_distance);
  check(smallest >= 1 && smallest <= kOne, "the threshold of ", max_distance, " is ", smallest);
  constexpr int32_t kScan = 1500;  // on both sides
  const int32_t begin = smallest > kScan ? smallest - kScan : 1;
  const int32_t end = smallest < kOne - kScan ? smallest + kScan : kOne;
  for (int32_t s = begin; s <= end; ++s)
    check((dmic::jaccard_from_overlap(s) <= max_distance) == (s >= smallest), "s = ", s, " with max_distance ",
          max_distance, " and threshold ", smallest);
}

void smallest_overlap_agrees_with_a_scan() {
  for (const float max_distance : {0.0f, 1.0f, 0.3f, 0.5f, 0.6f, 0x1p-149f, 0x1p-30f, 0x1p-29f, 1.9e-9f, 0.999999f})
    for (const float neighbor : {max_distance, std::nextafter(max_distance, 0.0f), std::nextafter(max_distance, 1.0f)})
      check_threshold(neighbor);
  std::mt19937_64 random(7);
  for (int i = 0; i < 300; ++i) {
    const float any = std::ldexp(static_cast<float>(random() >> 40), -24 - i % 8);
    check_threshold(any);
    check_threshold(dmic::jaccard_from_overlap(static_cast<int32_t>(random() % static_cast<uint64_t>(kOne))));
  }
}

void the_ends_of_the_threshold() {
  check(dmic::smallest_overlap_within(1.0f) == 1, "everything that overlaps");
  check(dmic::smallest_overlap_within(0.0f) == kOne, "only the same encoding");
}

}  // namespace

int main() {
  return check_claims({
      {"divide_share is the integer quotient", divide_share_is_the_integer_quotient},
      {"fixed_share is the integer quotient", fixed_share_is_the_integer_quotient},
      {"a whole share is one", a_whole_share_is_one},
      {"share numerators do not exceed one", share_numerators_do_not_exceed_one},
      {"Jaccard ends are exact", jaccard_ends_are_exact},
      {"Jaccard is the nearest float, but for double rounding", jaccard_is_the_nearest_float_but_for_double_rounding},
      {"Jaccard never rises with the overlap", jaccard_never_rises_with_the_overlap},
      {"smallest_overlap_within agrees with a scan", smallest_overlap_agrees_with_a_scan},
      {"the ends of the threshold", the_ends_of_the_threshold},
  });
}
