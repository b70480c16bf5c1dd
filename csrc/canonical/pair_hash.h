// Hashes of the entries of a matrix that must be symmetric. Every entry and its mirror image cancel in a sum modulo 2^64 of
// balanced hashes; one that stands alone leaves it different from zero, but for one case in 2^64.
#pragma once

#include <cstdint>

#include "annotate.h"
#include "half.h"

namespace dmic {

DMIC_HOST_DEVICE inline uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Of `value` at row i, column j. Zero on the diagonal; -0 is 0.
DMIC_HOST_DEVICE inline uint64_t balanced_hash(int64_t i, int64_t j, float value) {
  if (i == j) return 0;
  const uint64_t low = static_cast<uint64_t>(i < j ? i : j), high = static_cast<uint64_t>(i < j ? j : i);
  const uint64_t hash = mix(mix(low << 32 | high) ^ float_bits(value + 0.0f));
  return i < j ? hash : 0 - hash;
}

}  // namespace dmic
