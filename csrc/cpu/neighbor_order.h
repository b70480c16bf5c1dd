// An order of the rows in which those that need the same rows of other matrices follow each other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dmic {

// Every row once, each followed by those of its neighbours that have it for a neighbour too and have not had their turn:
// what one of them reads is in the cache when the next one asks for it. A neighbour that is not mutual belongs elsewhere
// and waits, since its own neighbours are read from memory there. A short list ends with -1; sample_of(row) is the
// sample that the list of a row is of, row_of(sample) its row, or -1.
template <class SampleOf, class RowOf>
std::vector<int32_t> follow_neighbors(const int32_t* neighbor_idx, int64_t rows, int64_t k1, const SampleOf& sample_of,
                                      const RowOf& row_of) {
  std::vector<int32_t> order;
  order.reserve(rows);
  std::vector<bool> taken(rows);
  const auto take = [&](int64_t i) {
    taken[i] = true;
    order.push_back(static_cast<int32_t>(i));
  };
  for (int64_t i = 0; i < rows; ++i) {
    if (taken[i]) continue;
    take(i);
    const int32_t* list = neighbor_idx + i * k1;
    for (int64_t t = 0; t < k1 && list[t] >= 0; ++t) {
      const int64_t j = row_of(list[t]);
      if (j < 0 || taken[j]) continue;
      const int32_t* other = neighbor_idx + j * k1;
      if (std::find(other, other + k1, sample_of(i)) < other + k1) take(j);
    }
  }
  return order;
}

// Row i is sample i.
inline std::vector<int32_t> order_by_neighbors(const int32_t* neighbor_idx, int64_t rows, int64_t k1) {
  const auto same = [](int64_t i) { return static_cast<int32_t>(i); };
  return follow_neighbors(neighbor_idx, rows, k1, same, same);
}

// Rows of any samples of [0, samples): a list begins with the sample itself, nearly always.
inline std::vector<int32_t> order_by_neighbors(const int32_t* neighbor_idx, int64_t rows, int64_t k1, int64_t samples) {
  std::vector<int32_t> row_of(samples, -1);
  for (int64_t i = 0; i < rows && k1 > 0; ++i) row_of[neighbor_idx[i * k1]] = static_cast<int32_t>(i);
  return follow_neighbors(
      neighbor_idx, rows, k1, [&](int64_t i) { return neighbor_idx[i * k1]; }, [&](int32_t j) { return row_of[j]; });
}

}  // namespace dmic
