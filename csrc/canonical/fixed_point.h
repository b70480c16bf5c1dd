// Encodings are integers in units of 2^-30, so their sums do not depend on the order of additions.
#pragma once

#include <cmath>
#include <cstdint>

#include "annotate.h"
#include "exp.h"

namespace dmic {

constexpr int kOneBits = 30;
constexpr int32_t kOne = 1 << kOneBits;       // probability 1; every non-empty row of an encoding sums to this
constexpr uint64_t kShareOne = 1ull << 32;    // numerators of expansion weights and of exp, before normalisation

// exp(t) in units of 2^-32, for t <= 0.
DMIC_HOST_DEVICE inline uint64_t fixed_exp(double t) {
  return static_cast<uint64_t>(rint(canonical_exp(t) * static_cast<double>(kShareOne)));
}

constexpr double kDotLimit = 0x1p1023;  // dots of this magnitude or more overflow when doubled

// The weight of a dot product before normalisation: exp of 2 dot - 2, relative to the largest of the row.
DMIC_HOST_DEVICE inline uint64_t fixed_weight(double dot, double largest_dot) {
  return fixed_exp((2.0 * dot - 2.0) - (2.0 * largest_dot - 2.0));
}

// weight * 2^30 / total rounded down, for weight <= total and weight <= 2^32.
DMIC_HOST_DEVICE inline int32_t fixed_share(uint64_t weight, uint64_t total) {
  return static_cast<int32_t>((weight << kOneBits) / total);
}

// floor(sum / divisor) for sum <= divisor * 2^30 and divisor <= 2^32: a reciprocal multiplication, corrected to be exact.
DMIC_HOST_DEVICE inline int32_t divide_share(uint64_t sum, uint64_t divisor, double reciprocal) {
  int64_t quotient = static_cast<int64_t>(static_cast<double>(sum) * reciprocal);
  const int64_t rest = static_cast<int64_t>(sum) - quotient * static_cast<int64_t>(divisor);
  if (rest < 0) --quotient;
  if (rest >= static_cast<int64_t>(divisor)) ++quotient;
  return static_cast<int32_t>(quotient);
}

// Numerator of the weight of one neighbour under nested means: sample -> camera -> modality.
DMIC_HOST_DEVICE inline uint64_t share_numerator(uint64_t modalities, uint64_t cameras, uint64_t members) {
  return kShareOne / (modalities * cameras * members);
}

}  // namespace dmic
