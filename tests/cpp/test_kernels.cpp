// The kernels through their C interface, without torch: emulated, against plain loops over the canonical headers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../csrc/canonical/dot.h"
#include "../../csrc/canonical/fixed_point.h"
#include "../../csrc/canonical/half.h"
#include "../../csrc/canonical/jaccard.h"
#include "../../csrc/cuda/kernels/dbscan.cuh"
#include "../../csrc/cuda/kernels/input_checks.cuh"
#include "../../csrc/cuda/kernels/invariant_expansion.cuh"
#include "../../csrc/cuda/kernels/jaccard_distance.cuh"
#include "../../csrc/cuda/kernels/k_reciprocal_encoding.cuh"
#include "../../csrc/cuda/kernels/knn_graph.cuh"
#include "../../csrc/cuda/kernels/round_features.cuh"
#include "../cuda_emulator/emulator.h"
#include "check.h"
#include "shared_code.cuh"

namespace {

void run(const char* error) { check(!error, error ? error : ""); }

template <class Test>
void under_every_schedule(const Test& test) {
  for (long schedule = 0; schedule < 4; ++schedule) {
    emulator::configure(schedule, 2);
    test(schedule);
  }
}

// ---- what kernels share --------------------------------------------------------------------------------------------

void block_sort_sorts_any_count() {
  under_every_schedule([](long schedule) {
    std::mt19937_64 random(7);
    for (const uint32_t count : {0, 1, 2, 3, 31, 32, 33, 100, 255, 257})
      for (const bool in_shared : {false, true}) {
        std::vector<uint64_t> keys(count);
        for (uint64_t& key : keys) key = random() % 64 ? random() % (2 * count) : UINT64_MAX;
        std::vector<uint64_t> want = keys;
        std::sort(want.begin(), want.end());
        run(launch_block_sort(keys.data(), count, 64, in_shared));
        check(keys == want, count, " keys are not in order under schedule ", schedule);
      }
  });
}

double canonical_dot(const float* x, const float* y, int64_t d) {
  double sums[dmic::kDotLanes] = {};
  for (int64_t k = 0; k < d; ++k) sums[k % dmic::kDotLanes] += static_cast<double>(x[k]) * y[k];
  return dmic::fold_dot_lanes(sums);
}

void warp_dots_are_canonical_in_every_lane() {
  under_every_schedule([](long schedule) {
    std::mt19937_64 random(8);
    std::normal_distribution<float> normal;
    constexpr int64_t kRows = 5;
    for (const int64_t d : {1, 3, 4, 33, 128, 131, 260})
      for (const int64_t offset : {0, 1}) {  // of the first row from a multiple of 16 bytes
        std::vector<float> buffer((kRows + 1) * d + offset);
        for (float& x : buffer) x = normal(random);
        const float *features = buffer.data() + offset, *x = features + kRows * d;
        for (const int lane : {0, 19, 31}) {
          std::vector<double> dots(3 * kRows);
          run(launch_warp_dots(x, features, kRows, d, lane, dots.data()));
          for (int64_t t = 0; t < 3 * kRows; ++t)
            check(dots[t] == canonical_dot(x, features + (t / 3 + t % 3) % kRows * d, d), "other bits for d = ", d,
                  " in lane ", lane, " under schedule ", schedule);
        }
      }
  });
}

// ---- round_features ------------------------------------------------------------------------------------------------

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
  run(dmic_launch_round_features(features.data(), rows, d, power, result.halves.data(), result.norms.data(),
                                 &result.bad_row, nullptr));
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
      under_every_schedule([&](long schedule) {
        const Rounded got = round_emulated(features, rows, d, 4.0);
        check(got == want, "other bits for ", rows, " rows of ", d, " under schedule ", schedule);
      });
    }
}

void a_launch_that_cannot_be_is_refused() {
  Rounded result(0, 0);
  const char* error = dmic_launch_round_features(nullptr, 0, 4, 1.0, nullptr, nullptr, nullptr, nullptr);
  check(error, "a grid without blocks was run");
}

// ---- a gallery and what every step makes of it, plainly ------------------------------------------------------------

constexpr int64_t kRows = 83, kDim = 24, kK1 = 9, kHalf = 5, kK2 = 4;  // a multiple of 8 columns, as the search wants

std::vector<float> gallery() {
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> centers(8 * kDim), features(kRows * kDim);
  for (float& x : centers) x = normal(random);
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t k = 0; k < kDim; ++k) features[i * kDim + k] = (centers[i % 8 * kDim + k] + 0.5f * normal(random)) / 6;
  for (int64_t i = 60; i < 75; ++i)  // more duplicates than a list holds
    std::copy_n(features.begin() + 59 * kDim, kDim, features.begin() + i * kDim);
  return features;
}

struct Lists {
  std::vector<int32_t> neighbor_idx;
  std::vector<float> neighbor_dist;
  bool operator==(const Lists&) const = default;
};

Lists search_plainly(const std::vector<float>& features) {
  Lists lists;
  const auto dot = [&](int64_t i, int64_t j) { return canonical_dot(&features[i * kDim], &features[j * kDim], kDim); };
  for (int64_t i = 0; i < kRows; ++i) {
    std::vector<std::pair<float, int32_t>> keys;
    for (int64_t j = 0; j < kRows; ++j)
      keys.emplace_back(static_cast<float>(dmic::squared_distance(dot(i, i), dot(j, j), dot(i, j))), j);
    std::sort(keys.begin(), keys.end());
    for (int64_t t = 0; t < kK1; ++t) {
      lists.neighbor_dist.push_back(keys[t].first);
      lists.neighbor_idx.push_back(keys[t].second);
    }
  }
  return lists;
}

template <class Value>
struct Csr {
  std::vector<int64_t> row_ptr = {0};
  std::vector<int32_t> col_idx;
  std::vector<Value> values;
  bool operator==(const Csr&) const = default;

  void push(int32_t column, Value value) {
    col_idx.push_back(column);
    values.push_back(value);
  }
  void end_row() { row_ptr.push_back(static_cast<int64_t>(col_idx.size())); }
  int64_t rows() const { return static_cast<int64_t>(row_ptr.size()) - 1; }
};

// Appends a row of shares: what they lack of 2^30 goes to the largest, zeros are left out.
void push_shares(Csr<int32_t>& rows, std::map<int32_t, int32_t> shares) {
  int32_t rest = dmic::kOne;
  for (const auto& [column, share] : shares) rest -= share;
  const auto largest = std::max_element(shares.begin(), shares.end(),
                                        [](const auto& a, const auto& b) { return a.second < b.second; });
  if (largest != shares.end()) largest->second += rest;
  for (const auto& [column, share] : shares)
    if (share) rows.push(column, share);
  rows.end_row();
}

Csr<int32_t> encode_plainly(const std::vector<float>& features, const std::vector<int32_t>& neighbor_idx) {
  const auto reciprocal = [&](int64_t i, int64_t columns) {
    std::set<int32_t> found;
    for (int64_t t = 0; t < columns; ++t) {
      const int32_t j = neighbor_idx[i * kK1 + t];
      const auto list = neighbor_idx.begin() + j * kK1;
      if (std::find(list, list + columns, i) != list + columns) found.insert(j);
    }
    return found;
  };
  Csr<int32_t> encoding;
  for (int64_t i = 0; i < kRows; ++i) {
    const std::set<int32_t> near = reciprocal(i, kK1);
    std::set<int32_t> expanded = near;
    for (const int32_t q : near) {
      const std::set<int32_t> half = reciprocal(q, kHalf);
      const auto shared = std::count_if(half.begin(), half.end(), [&](int32_t j) { return near.count(j) > 0; });
      if (3 * shared > 2 * static_cast<int64_t>(half.size())) expanded.insert(half.begin(), half.end());
    }
    std::map<int32_t, double> exponents;
    double largest = -HUGE_VAL;
    for (const int32_t j : expanded) {
      exponents[j] = 2.0 * canonical_dot(&features[i * kDim], &features[j * kDim], kDim) - 2.0;
      largest = std::max(largest, exponents[j]);
    }
    uint64_t total = 0;
    for (const auto& [j, t] : exponents) total += dmic::fixed_exp(t - largest);
    std::map<int32_t, int32_t> shares;
    for (const auto& [j, t] : exponents) shares[j] = dmic::fixed_share(dmic::fixed_exp(t - largest), total);
    push_shares(encoding, shares);
  }
  return encoding;
}

int64_t camera_of(int64_t i) { return i * i % 5; }
int64_t modality_of(int64_t i) { return i % 3 == 0; }

Csr<int32_t> expand_plainly(const Csr<int32_t>& encoding, const std::vector<int32_t>& neighbor_idx) {
  Csr<int32_t> expanded;
  for (int64_t i = 0; i < kRows; ++i) {
    std::map<int64_t, std::map<int64_t, std::vector<int32_t>>> members;  // by modality, by camera
    for (int64_t t = 0; t < kK2; ++t) {
      const int32_t j = neighbor_idx[i * kK1 + t];
      if (encoding.row_ptr[j] < encoding.row_ptr[j + 1]) members[modality_of(j)][camera_of(j)].push_back(j);
    }
    uint64_t total = 0;
    std::map<int32_t, uint64_t> sums;
    for (const auto& [modality, cameras] : members)
      for (const auto& [camera, samples] : cameras)
        for (const int32_t j : samples) {
          const uint64_t numerator = dmic::share_numerator(members.size(), cameras.size(), samples.size());
          total += numerator;
          for (int64_t p = encoding.row_ptr[j]; p < encoding.row_ptr[j + 1]; ++p)
            sums[encoding.col_idx[p]] += numerator * static_cast<uint64_t>(encoding.values[p]);
        }
    std::map<int32_t, int32_t> shares;
    for (const auto& [column, sum] : sums) shares[column] = static_cast<int32_t>(sum / total);
    push_shares(expanded, shares);
  }
  return expanded;
}

Csr<float> join_plainly(const Csr<int32_t>& encoding, int32_t threshold) {
  Csr<float> distance;
  std::vector<std::map<int32_t, int32_t>> rows(encoding.rows());
  for (int64_t i = 0; i < encoding.rows(); ++i)
    for (int64_t p = encoding.row_ptr[i]; p < encoding.row_ptr[i + 1]; ++p)
      rows[i][encoding.col_idx[p]] = encoding.values[p];
  for (int64_t i = 0; i < encoding.rows(); ++i) {
    for (int64_t j = 0; j < encoding.rows(); ++j) {
      int32_t overlap = 0;
      for (const auto& [column, value] : rows[i])
        if (const auto other = rows[j].find(column); other != rows[j].end()) overlap += std::min(value, other->second);
      if (overlap >= threshold) distance.push(static_cast<int32_t>(j), dmic::jaccard_from_overlap(overlap));
    }
    distance.end_row();
  }
  return distance;
}

std::vector<int64_t> cluster_plainly(const Csr<float>& distance, float eps, int64_t min_samples) {
  const int64_t n = distance.rows();
  std::vector<std::vector<int32_t>> near(n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t p = distance.row_ptr[i]; p < distance.row_ptr[i + 1]; ++p)
      if (distance.values[p] <= eps || distance.col_idx[p] == i) near[i].push_back(distance.col_idx[p]);
  }
  const auto core = [&](int64_t i) { return static_cast<int64_t>(near[i].size()) >= min_samples; };
  std::vector<int64_t> labels(n, -1);
  int64_t clusters = 0;
  for (int64_t start = 0; start < n; ++start) {
    if (!core(start) || labels[start] >= 0) continue;
    std::vector<int64_t> open = {start};
    labels[start] = clusters;
    while (!open.empty()) {
      const int64_t i = open.back();
      open.pop_back();
      for (const int32_t j : near[i]) {
        if (labels[j] >= 0) continue;
        labels[j] = clusters;
        if (core(j)) open.push_back(j);
      }
    }
    ++clusters;
  }
  return labels;
}

// ---- the same by kernels -------------------------------------------------------------------------------------------

std::vector<int64_t> row_ptr_of(const std::vector<int32_t>& lengths) {
  std::vector<int64_t> row_ptr(lengths.size() + 1);
  std::partial_sum(lengths.begin(), lengths.end(), row_ptr.begin() + 1);
  return row_ptr;
}

// Every tile in two waves, with small tiles; `capacity` 0: nothing is proposed, and every row is redone.
Lists search_emulated(const std::vector<float>& features, int64_t capacity, uint64_t& num_redone) {
  const int64_t block = dmic_knn_graph_block(false), blocks = (kRows + block - 1) / block;
  std::vector<double> norm_sq(kRows);
  unsigned long long largest = 0, bad_row = kRows, redone = 0;
  run(dmic_launch_knn_graph_norms(features.data(), kRows, kDim, norm_sq.data(), &largest, nullptr));
  for (int64_t i = 0; i < kRows; ++i)
    check(norm_sq[i] == canonical_dot(&features[i * kDim], &features[i * kDim], kDim), "the norm of row ", i);
  double longest;
  std::memcpy(&longest, &largest, sizeof longest);
  check(longest == *std::max_element(norm_sq.begin(), norm_sq.end()), "the longest row");
  const double scale = std::ldexp(1.0, 14 - std::ilogb(std::sqrt(longest)));

  std::vector<uint8_t> overflowed(kRows, capacity == 0);
  std::vector<int32_t> count(kRows), redo(kRows);
  std::vector<float> bounds(4 * kRows), limit(kRows), reach(kRows);
  std::vector<uint64_t> lists(kRows * std::max<int64_t>(1, capacity));
  if (capacity > 0) {
    Rounded rounded(kRows, kDim);
    run(dmic_launch_round_features(features.data(), kRows, kDim, scale, rounded.halves.data(), rounded.norms.data(),
                                   &bad_row, nullptr));
    run(dmic_launch_knn_graph_start(norm_sq.data(), rounded.norms.data(), kRows, kDim, scale, blocks, nullptr,
                                    bounds.data(), count.data(), limit.data(), reach.data(), nullptr));
    for (const auto& [first, shifts] : {std::pair<int64_t, int64_t>{0, 1}, {1, blocks / 2}}) {
      run(dmic_launch_knn_graph_compare(rounded.halves.data(), kRows, kDim, 0, false, first, shifts, bounds.data(),
                                        limit.data(), lists.data(), capacity, count.data(), nullptr));
      run(dmic_launch_knn_graph_compact(norm_sq.data(), scale, kRows, kK1, bounds.data(), lists.data(), capacity,
                                        count.data(), limit.data(), reach.data(), overflowed.data(), nullptr));
    }
  }
  Lists found{std::vector<int32_t>(kRows * kK1), std::vector<float>(kRows * kK1)};
  run(dmic_launch_knn_graph_finish(features.data(), norm_sq.data(), kRows, kDim, kK1, lists.data(),
                                   std::max<int64_t>(1, capacity), count.data(), reach.data(), overflowed.data(),
                                   nullptr, found.neighbor_idx.data(), found.neighbor_dist.data(), redo.data(), &redone,
                                   nullptr));
  num_redone = redone;
  if (redone == 0) return found;
  std::vector<float> distances(redone * kRows);
  std::vector<uint64_t> keys(redone * kK1);
  run(dmic_launch_knn_graph_redo(features.data(), norm_sq.data(), kRows, kDim, kK1, 0, nullptr, redo.data(),
                                 static_cast<int64_t>(redone), distances.data(), keys.data(), found.neighbor_idx.data(),
                                 found.neighbor_dist.data(), nullptr));
  return found;
}

void the_search_is_the_plain_loop() {
  const std::vector<float> features = gallery();
  const Lists want = search_plainly(features);
  under_every_schedule([&](long schedule) {
    uint64_t redone = 0;
    check(search_emulated(features, 160, redone) == want, "other neighbours under schedule ", schedule);
    check(redone < kRows / 4, redone, " rows have no certificate under schedule ", schedule);
    check(search_emulated(features, 0, redone) == want, "other neighbours of redone rows under schedule ", schedule);
    check(redone == kRows, redone, " rows were redone under schedule ", schedule);
  });
}

// Where the rows and the entries of a gallery begin: behind others that are never looked at.
struct Place {
  int64_t row = 0, entry = 0;
};
// Every index into an array of a gallery here is beyond 2^31, of a row alone beyond 2^28.
constexpr Place kFar{(1ll << 28) + 3, (1ll << 31) + 7};
static_assert(kFar.row * kK1 > 1ll << 31);

// An array of which only the part behind the first `count` values exists.
template <class Array>
auto behind(int64_t count, Array& array) {
  using Value = std::remove_reference_t<decltype(*array.data())>;
  return reinterpret_cast<Value*>(reinterpret_cast<uintptr_t>(array.data()) - count * sizeof(Value));
}

template <class Value>
std::vector<Value> plus(std::vector<Value> values, int64_t summand) {
  for (Value& value : values) value += static_cast<Value>(summand);
  return values;
}

Csr<int32_t> encode_emulated(const std::vector<float>& features, const std::vector<int32_t>& neighbor_idx,
                             Place at = {}) {
  const int64_t blocks = std::min<int64_t>(3, dmic_expand_reciprocal_blocks()), end = at.row + kRows;
  const std::vector<int32_t> named = plus(neighbor_idx, at.row);
  const int32_t* lists = behind(at.row * kK1, named);
  std::vector<uint32_t> in_list(kRows * dmic::mask_words(kK1)), in_half(kRows * dmic::mask_words(kHalf));
  uint32_t* const reciprocal = behind(at.row * dmic::mask_words(kK1), in_list);
  uint32_t* const half = behind(at.row * dmic::mask_words(kHalf), in_half);
  const int64_t set_words = blocks * dmic::kExpandWarps * 2 * dmic::mask_words(end);
  const std::unique_ptr<uint32_t, void (*)(void*)> sets(static_cast<uint32_t*>(calloc(set_words, 4)), free);
  std::vector<int32_t> lengths(kRows);
  const auto expand = [&](const int64_t* row_ptr, int32_t* col_idx) {
    run(dmic_launch_expand_reciprocal(lists, end, at.row, end, kK1, kHalf, reciprocal, half, sets.get(), blocks,
                                      lengths.data(), row_ptr, col_idx, nullptr));
    if (at.row == 0) check(std::count(sets.get(), sets.get() + set_words, 0u) == set_words, "scratch is not left zero");
  };
  run(dmic_launch_mark_reciprocal(lists, at.row, end, kK1, kHalf, reciprocal, half, nullptr));
  expand(nullptr, nullptr);
  const std::vector<int64_t> ends = plus(row_ptr_of(lengths), at.entry);
  const int64_t nnz = ends.back() - at.entry, *row_ptr = behind(at.row, ends);
  std::vector<int32_t> members(nnz), shares(nnz);
  int32_t *const col_idx = behind(at.entry, members), *const values = behind(at.entry, shares);
  std::vector<double> products(nnz);
  double* const dots = behind(at.entry, products);
  unsigned long long wrong = 0;
  expand(ends.data(), col_idx);
  run(dmic_launch_sort_rows(ends.data(), 0, kRows, 10, col_idx, nullptr));
  const float* rows = behind(at.row * kDim, features);
  run(dmic_launch_sampled_dots(rows, rows, at.row, end, kDim, row_ptr, col_idx, dots, nullptr));
  run(dmic_launch_weigh_members(at.row, end, row_ptr, dots, values, behind(at.row, lengths), &wrong, nullptr));
  check(wrong == 0, "dot products of features are called wrong");
  Csr<int32_t> encoding;
  encoding.row_ptr = row_ptr_of(lengths);
  encoding.col_idx.resize(encoding.row_ptr.back());
  encoding.values.resize(encoding.row_ptr.back());
  const std::vector<int64_t> kept = plus(encoding.row_ptr, at.entry);
  run(dmic_launch_drop_zeros(row_ptr, col_idx, values, at.row, end, behind(at.row, kept),
                             behind(at.entry, encoding.col_idx), behind(at.entry, encoding.values), nullptr));
  encoding.col_idx = plus(encoding.col_idx, -at.row);
  return encoding;
}

void the_encoding_is_the_plain_loop() {
  const std::vector<float> features = gallery();
  const std::vector<int32_t> neighbor_idx = search_plainly(features).neighbor_idx;
  const Csr<int32_t> want = encode_plainly(features, neighbor_idx);
  under_every_schedule([&](long schedule) {
    check(encode_emulated(features, neighbor_idx) == want, "another encoding under schedule ", schedule);
  });
}

Csr<int32_t> expand_emulated(const Csr<int32_t>& encoding, const std::vector<int32_t>& neighbor_idx,
                             int64_t shared_slots, Place at = {}) {
  const int64_t end = at.row + kRows;
  const std::vector<int64_t> ends = plus(encoding.row_ptr, at.entry);
  const std::vector<int32_t> named = plus(neighbor_idx, at.row), columns = plus(encoding.col_idx, at.row);
  const int64_t* row_ptr = behind(at.row, ends);
  const int32_t* lists = behind(at.row * kK1, named);
  std::vector<int64_t> cameras(kRows), modalities(kRows), bounds(kRows);
  for (int64_t i = 0; i < kRows; ++i) cameras[i] = camera_of(i), modalities[i] = modality_of(i);
  constexpr int64_t kWords = (kK2 + 31) / 32;
  std::vector<uint32_t> camera_mask(kRows * kWords);
  std::vector<unsigned long long> numerators(kRows * kK2), totals(kRows);
  run(dmic_launch_weigh_neighbors(row_ptr, lists, end, at.row, end, kK1, kK2, behind(at.row, cameras),
                                  behind(at.row, modalities), behind(at.row * kWords, camera_mask),
                                  behind(at.row * kK2, numerators), behind(at.row, totals), behind(at.row, bounds),
                                  nullptr));
  const int64_t slots = dmic::table_slots(*std::max_element(bounds.begin(), bounds.end()));
  constexpr int64_t kBlocks = 2;
  std::vector<uint64_t> tables(kBlocks * slots * dmic::kSlotBytes / sizeof(uint64_t));
  std::vector<int32_t> lengths(kRows);
  Csr<int32_t> expanded;
  for (const bool fill : {false, true}) {
    if (fill) {
      expanded.row_ptr = row_ptr_of(lengths);
      expanded.col_idx.resize(expanded.row_ptr.back());
      expanded.values.resize(expanded.row_ptr.back());
    }
    const std::vector<int64_t> filled = plus(expanded.row_ptr, at.entry);
    for (void* scratch : {static_cast<void*>(nullptr), static_cast<void*>(tables.data())})
      run(dmic_launch_merge_neighbors(row_ptr, behind(at.entry, columns), behind(at.entry, encoding.values), lists,
                                      at.row, end, kK1, kK2, behind(at.row * kK2, numerators), behind(at.row, totals),
                                      behind(at.row, bounds), shared_slots, scratch, kBlocks, 64, slots,
                                      behind(at.row, lengths), fill ? behind(at.row, filled) : nullptr,
                                      behind(at.entry, expanded.col_idx), behind(at.entry, expanded.values), nullptr));
  }
  expanded.col_idx = plus(expanded.col_idx, -at.row);
  return expanded;
}

void the_expansion_is_the_plain_loop() {
  const std::vector<float> features = gallery();
  const std::vector<int32_t> neighbor_idx = search_plainly(features).neighbor_idx;
  const Csr<int32_t> encoding = encode_plainly(features, neighbor_idx);
  const Csr<int32_t> want = expand_plainly(encoding, neighbor_idx);
  under_every_schedule([&](long schedule) {
    for (const int64_t shared_slots : {8, 32, 1024})  // no row in shared memory, some, all
      check(expand_emulated(encoding, neighbor_idx, shared_slots) == want, "another expansion with ", shared_slots,
            " slots under schedule ", schedule);
  });
}

Csr<float> join_emulated(const Csr<int32_t>& encoding, int32_t threshold, int64_t capacity, int64_t max_probes,
                         int64_t& num_spilled, int64_t entry = 0) {
  constexpr int kThreads = 64;
  const int64_t n = encoding.rows(), nnz = encoding.row_ptr.back(), shared_keys = 12;
  const std::vector<int64_t> ends = plus(encoding.row_ptr, entry);
  const int64_t* row_ptr = ends.data();
  const int32_t *col_idx = behind(entry, encoding.col_idx), *values = behind(entry, encoding.values);
  std::vector<int32_t> counts(n);
  run(dmic_launch_jaccard_count(encoding.col_idx.data(), nnz, counts.data(), nullptr));
  const std::vector<int64_t> list_ptr = plus(row_ptr_of(counts), entry);
  std::vector<unsigned long long> cursors(list_ptr.begin(), list_ptr.end());
  std::vector<uint64_t> in_lists(nnz), keys(nnz);
  uint64_t* const lists = behind(entry, in_lists);
  run(dmic_launch_jaccard_lists(row_ptr, col_idx, values, n, 0, cursors.data(), lists, nullptr));
  run(dmic_launch_jaccard_sort(list_ptr.data(), n, in_lists.data(), shared_keys, kThreads, nullptr));
  run(dmic_launch_jaccard_weigh(encoding.col_idx.data(), encoding.values.data(), nnz, keys.data(), nullptr));
  run(dmic_launch_jaccard_sort(row_ptr, n, keys.data(), shared_keys, kThreads, nullptr));
  std::vector<JaccardScan> plan(nnz);
  std::vector<int64_t> tiles(n);
  run(dmic_launch_jaccard_plan(row_ptr, 0, n, keys.data(), list_ptr.data(), lists, plan.data(), tiles.data(), nullptr));
  std::vector<int32_t> spilled(n), pairs(n * n);
  std::vector<float> distances(n * n / 2);
  unsigned long long counters[kJaccardCounters] = {};
  const JaccardJoin join{row_ptr, col_idx, values, row_ptr, col_idx, values, 0, lists, plan.data(), tiles.data(), 0, n,
                         threshold, 8, spilled.data(), pairs.data(), distances.data(), n * n / 2, counters};
  run(dmic_launch_jaccard_join(&join, capacity, max_probes, kThreads, nullptr));
  num_spilled = static_cast<int64_t>(counters[kJaccardSpilled]);
  if (num_spilled > 0) {
    constexpr int64_t kSlots = 2;
    std::vector<int32_t> overlaps(kSlots * n), candidates(kSlots * n);
    run(dmic_launch_jaccard_join_spilled(&join, num_spilled, overlaps.data(), candidates.data(),
                                         std::min(num_spilled, kSlots), n, kThreads, nullptr));
  }
  const int64_t num_pairs = static_cast<int64_t>(counters[kJaccardPairs]);
  std::vector<int32_t> lengths(n);
  run(dmic_launch_jaccard_diagonal_lengths(row_ptr, n, lengths.data(), nullptr));
  if (num_pairs > 0) run(dmic_launch_jaccard_count(pairs.data(), 2 * num_pairs, lengths.data(), nullptr));
  Csr<float> distance;
  distance.row_ptr = row_ptr_of(lengths);
  const int64_t total = distance.row_ptr.back();
  std::vector<uint64_t> entries(total);
  uint64_t* const mirrored = behind(entry, entries);
  const std::vector<int64_t> distance_ptr = plus(distance.row_ptr, entry);
  run(dmic_launch_jaccard_diagonal(row_ptr, distance_ptr.data(), n, cursors.data(), mirrored, nullptr));
  if (num_pairs > 0)
    run(dmic_launch_jaccard_mirror(pairs.data(), distances.data(), num_pairs, cursors.data(), mirrored, nullptr));
  run(dmic_launch_jaccard_sort(distance.row_ptr.data(), n, entries.data(), shared_keys, kThreads, nullptr));
  distance.col_idx.resize(total);
  distance.values.resize(total);
  run(dmic_launch_jaccard_unpack(entries.data(), total, distance.col_idx.data(), distance.values.data(), nullptr));
  return distance;
}

void the_distance_is_the_plain_loop() {
  const std::vector<float> features = gallery();
  const std::vector<int32_t> neighbor_idx = search_plainly(features).neighbor_idx;
  const Csr<int32_t> expanded = expand_plainly(encode_plainly(features, neighbor_idx), neighbor_idx);
  for (const float max_distance : {0.0f, 0.6f, 1.0f}) {
    const int32_t threshold = dmic::smallest_overlap_within(max_distance);
    const Csr<float> want = join_plainly(expanded, threshold);
    under_every_schedule([&](long schedule) {
      for (const bool small : {false, true}) {
        int64_t num_spilled = 0;
        const Csr<float> got = join_emulated(expanded, threshold, small ? 16 : 1024, small ? 4 : 1024, num_spilled);
        check(got == want, "other distances up to ", max_distance, " under schedule ", schedule);
        if (max_distance == 1.0f) check(small == (num_spilled > 0), num_spilled, " rows spilled");
      }
    });
  }
}

void indices_beyond_32_bits_are_the_same() {
  const std::vector<float> features = gallery();
  const std::vector<int32_t> neighbor_idx = search_plainly(features).neighbor_idx;
  emulator::configure(0, 2);
  const Csr<int32_t> want = encode_emulated(features, neighbor_idx);
  check(encode_emulated(features, neighbor_idx, kFar) == want, "another encoding far behind");
  for (const int64_t shared_slots : {8, 1024})
    check(expand_emulated(want, neighbor_idx, shared_slots, kFar) == expand_emulated(want, neighbor_idx, shared_slots),
          "another expansion far behind, with ", shared_slots, " slots");
  const Csr<int32_t> expanded = expand_plainly(want, neighbor_idx);
  for (const bool small : {false, true}) {
    int64_t num_spilled = 0;
    const Csr<float> got = join_emulated(expanded, 1, small ? 16 : 1024, small ? 4 : 1024, num_spilled, kFar.entry);
    check(got == join_plainly(expanded, 1), "other distances far behind");
    check(small == (num_spilled > 0), num_spilled, " rows spilled");
  }
}

void the_clusters_are_the_plain_search() {
  const std::vector<float> features = gallery();
  const std::vector<int32_t> neighbor_idx = search_plainly(features).neighbor_idx;
  const Csr<int32_t> expanded = expand_plainly(encode_plainly(features, neighbor_idx), neighbor_idx);
  const Csr<float> distance = join_plainly(expanded, 1);
  for (const float eps : {0.2f, 0.35f, 0.5f})
    for (const int64_t min_samples : {1, 3, 6}) {
      const std::vector<int64_t> want = cluster_plainly(distance, eps, min_samples);
      under_every_schedule([&](long schedule) {
        const int64_t entry = schedule % 2 ? kFar.entry : 0;
        const std::vector<int64_t> ends = plus(distance.row_ptr, entry);
        const int64_t* row_ptr = ends.data();
        const int32_t* col_idx = behind(entry, distance.col_idx);
        const float* values = behind(entry, distance.values);
        bool core[kRows];
        unsigned long long bad_values = 0, balance = 0;
        std::vector<int32_t> parent(kRows), is_first(kRows);
        std::vector<int64_t> labels(kRows);
        run(dmic_launch_dbscan_core(row_ptr, kRows, col_idx, values, eps, min_samples, core, parent.data(), &bad_values,
                                    &balance, nullptr));
        check(bad_values == 0 && balance == 0, "the distances are not symmetric");
        run(dmic_launch_dbscan_join(row_ptr, kRows, col_idx, values, eps, core, parent.data(), nullptr));
        run(dmic_launch_dbscan_flatten(kRows, core, parent.data(), is_first.data(), nullptr));
        const std::vector<int64_t> cluster_of = row_ptr_of(is_first);
        run(dmic_launch_dbscan_label(row_ptr, kRows, col_idx, values, eps, core, parent.data(), cluster_of.data(),
                                     labels.data(), nullptr));
        check(labels == want, "other labels for eps = ", eps, ", min_samples = ", min_samples, " under schedule ",
              schedule);
      });
    }
}

// ---- checks of the inputs ------------------------------------------------------------------------------------------

void what_is_wrong_is_found_and_nothing_else() {
  const std::vector<float> features = gallery();
  const std::vector<int32_t> neighbor_idx = search_plainly(features).neighbor_idx;
  const Csr<int32_t> encoding = encode_plainly(features, neighbor_idx);
  const auto wrong = [](auto launch) {
    unsigned long long found = 0;
    run(launch(&found));
    return found != 0;
  };
  const auto wrong_features = [&](std::vector<float> x) {
    return wrong([&](auto* found) {
      return dmic_launch_check_finite(x.data(), static_cast<int64_t>(x.size()), found, nullptr);
    });
  };
  const auto wrong_lists = [&](std::vector<int32_t> lists, int64_t distinct) {
    return wrong([&](auto* found) {
      return dmic_launch_check_neighbors(lists.data(), kRows, kK1, kRows, distinct, 0, kRows, found, nullptr);
    });
  };
  const auto wrong_row_ptr = [&](std::vector<int64_t> row_ptr) {
    return wrong([&](auto* found) {
      return dmic_launch_check_row_ptr(row_ptr.data(), kRows, encoding.row_ptr.back(), found, nullptr);
    });
  };
  const auto wrong_rows = [&](std::vector<int32_t> col_idx, std::vector<int32_t> values) {
    return wrong([&](auto* found) {
      return dmic_launch_check_rows(encoding.row_ptr.data(), kRows, kRows, col_idx.data(), values.data(), found,
                                    nullptr);
    });
  };
  const auto edited = [](auto values, int64_t at, auto value) {
    values[at] = value;
    return values;
  };
  under_every_schedule([&](long) {
    check(!wrong_features(features) && !wrong_lists(neighbor_idx, kK1) && !wrong_row_ptr(encoding.row_ptr) &&
              !wrong_rows(encoding.col_idx, encoding.values),
          "sound inputs are called wrong");
    for (const int64_t at : {int64_t{0}, kRows * kDim - 1})
      check(wrong_features(edited(features, at, NAN)), "NaN passed");
    check(wrong_features(edited(features, 77, -HUGE_VALF)), "infinity passed");
    check(wrong_lists(edited(neighbor_idx, 5, -1), 0) && wrong_lists(edited(neighbor_idx, kRows * kK1 - 1, kRows), 0),
          "an index outside passed");
    const auto twice = edited(neighbor_idx, 8, neighbor_idx[3]);
    check(wrong_lists(twice, 9) && !wrong_lists(twice, 8), "an index that is there twice");
    check(wrong_row_ptr(edited(encoding.row_ptr, 0, int64_t{1})) &&
              wrong_row_ptr(edited(encoding.row_ptr, kRows, encoding.row_ptr.back() + 1)) &&
              wrong_row_ptr(edited(encoding.row_ptr, 40, encoding.row_ptr[39] - 1)),
          "a broken row_ptr passed");
    check(wrong_rows(edited(encoding.col_idx, 1, encoding.col_idx[0]), encoding.values) &&
              wrong_rows(edited(encoding.col_idx, 0, -1), encoding.values),
          "broken columns passed");
    check(wrong_rows(encoding.col_idx, edited(encoding.values, 2, encoding.values[2] + 1)) &&
              wrong_rows(encoding.col_idx, edited(encoding.values, 2, 0)),
          "broken values passed");
  });
}

}  // namespace

int main() {
  return check_claims({
      {"block_sort sorts any count", block_sort_sorts_any_count},
      {"warp_dots are canonical in every lane", warp_dots_are_canonical_in_every_lane},
      {"round_features is the plain loop", round_features_is_the_plain_loop},
      {"a launch that cannot be is refused", a_launch_that_cannot_be_is_refused},
      {"the search is the plain loop", the_search_is_the_plain_loop},
      {"the encoding is the plain loop", the_encoding_is_the_plain_loop},
      {"the expansion is the plain loop", the_expansion_is_the_plain_loop},
      {"the distance is the plain loop", the_distance_is_the_plain_loop},
      {"indices beyond 32 bits are the same", indices_beyond_32_bits_are_the_same},
      {"the clusters are the plain search", the_clusters_are_the_plain_search},
      {"what is wrong is found and nothing else", what_is_wrong_is_found_and_nothing_else},
  });
}
