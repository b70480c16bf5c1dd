// An order of the rows in which those that need the same rows of other matrices follow each other.
#pragma once

#include <cstdint>
#include <vector>

namespace dmic {

// Every row once, each followed by those of its neighbours that have not had their turn: what one of them reads is in
// the cache when the next one asks for it. A list that is shorter than k1 ends with -1.
inline std::vector<int32_t> order_by_neighbors(const int32_t* neighbor_idx, int64_t rows, int64_t k1) {
  std::vector<int32_t> order;
  order.reserve(rows);
  std::vector<bool> taken(rows);
  const auto take = [&](int64_t i) {
    if (taken[i]) return;
    taken[i] = true;
    order.push_back(static_cast<int32_t>(i));
  };
  for (int64_t i = 0; i < rows; ++i) {
    if (taken[i]) continue;
    take(i);
    for (int64_t t = 0; t < k1 && neighbor_idx[i * k1 + t] >= 0; ++t) take(neighbor_idx[i * k1 + t]);
  }
  return order;
}

}  // namespace dmic
