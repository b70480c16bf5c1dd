// Every instruction set that is compiled in and available here against plain loops: the same bits where they are
// promised, the stated error bound where they are not.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "../../csrc/canonical/dot.h"
#include "../../csrc/canonical/fixed_point.h"
#include "../../csrc/cpu/simd.h"
#include "check.h"

namespace {

using dmic::RoundedKernels;
using dmic::SimdKernels;
using dmic::TileFilter;
using dmic::TileHit;

void for_each_level(const std::function<void(const SimdKernels&)>& test) {
  for (const char* const* name = dmic::simd_levels(); *name; ++name) {
    if (!dmic::simd_level_available(*name)) {
      std::printf("(no %s here) ", *name);
      continue;
    }
    check(dmic::set_simd_level(*name), "level ", *name, " cannot be set");
    check(!std::strcmp(dmic::simd().name, *name), "level ", *name, " is not in use");
    test(dmic::simd());
  }
  check(dmic::set_simd_level(nullptr), "the best level cannot be chosen");
}

void levels_are_chosen_by_name() {
  for_each_level([](const SimdKernels&) {});
  check(!dmic::set_simd_level("abacus") && !dmic::simd_level_available("abacus"), "there is no abacus");
}

// Rows whose products differ by many binary digits, so that almost every order of additions has its own sum.
std::vector<float> rows_of_mixed_magnitude(int64_t rows, int64_t d, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> values(rows * d);
  for (float& value : values) {
    const float mantissa = static_cast<float>(static_cast<int64_t>(random() >> 40) - (1 << 23));
    value = std::ldexp(mantissa, static_cast<int>(random() % 40) - 40);
  }
  return values;
}

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// What is left in `lane` once the partial sums have been folded in halves down to `width`.
double folded(const double* sums, int lane, int width) {
  if (width == dmic::kDotLanes) return sums[lane];
  return folded(sums, lane, 2 * width) + folded(sums, lane + width, 2 * width);
}

double dot_in_canonical_order(const float* x, const float* y, int64_t d) {
  double sums[dmic::kDotLanes] = {};
  for (int64_t k = 0; k < d; ++k) sums[k % dmic::kDotLanes] += static_cast<double>(x[k]) * static_cast<double>(y[k]);
  const double sum = folded(sums, 0, 1);
  check(same_bits(dmic::fold_dot_lanes(sums), sum), "fold_dot_lanes does not fold in halves, for d = ", d);
  return sum;
}

double dot_in_sequence(const float* x, const float* y, int64_t d) {
  double sum = 0;
  for (int64_t k = 0; k < d; ++k) sum += static_cast<double>(x[k]) * static_cast<double>(y[k]);
  return sum;
}

std::vector<int64_t> dimensions() {
  std::vector<int64_t> sizes{0};
  for (int64_t d = 1; d <= 300; ++d) sizes.push_back(d);
  for (const int64_t d : {383, 384, 385, 511, 512, 513, 1000, 2047, 2048, 2049, 2080, 4097}) sizes.push_back(d);
  return sizes;
}

void dots_add_in_the_canonical_order() {
  constexpr int64_t kRows = 9;
  const std::vector<int32_t> idx{8, 0, 3, 3, 1, 7};
  for_each_level([&](const SimdKernels& kernels) {
    int64_t order_shows = 0;
    for (const int64_t d : dimensions()) {
      const std::vector<float> rows = rows_of_mixed_magnitude(kRows, d, 100 + d);
      std::vector<double> wide(d + dmic::kDotLanes), out(idx.size());
      for (int64_t i = 0; i < kRows; ++i) {
        const float* x = rows.data() + i * d;
        kernels.dots(x, rows.data(), d, idx.data(), static_cast<int64_t>(idx.size()), wide.data(), out.data());
        for (size_t t = 0; t < idx.size(); ++t) {
          const float* y = rows.data() + idx[t] * d;
          const double want = dot_in_canonical_order(x, y, d);
          check(same_bits(out[t], want), kernels.name, ": d = ", d, ", got ", out[t], ", not ", want);
          order_shows += out[t] != dot_in_sequence(x, y, d);
        }
      }
    }
    check(order_shows > 1000, "these numbers do not tell one order from another");
  });
}

void no_rows_have_no_dots() {
  for_each_level([](const SimdKernels& kernels) {
    const float x[3] = {1, 2, 3};
    double wide[3 + dmic::kDotLanes];
    kernels.dots(x, x, 3, nullptr, 0, wide, nullptr);
  });
}

// One tile of two by two panels: as the caller packs it, kTileDepth columns at a time.
std::vector<float> tile_product(const SimdKernels& kernels, const std::vector<float>& x, const std::vector<float>& y,
                                int64_t rows, int64_t cols, int64_t d) {
  const auto pack = [&](const std::vector<float>& values, int64_t count, int64_t panel, int64_t begin, int64_t depth) {
    std::vector<float> packed;
    for (int64_t p = 0; p < count; p += panel)
      for (int64_t k = begin; k < begin + depth; ++k)
        for (int64_t r = p; r < p + panel; ++r) packed.push_back(values[r * d + k]);
    return packed;
  };
  std::vector<float> scores(rows * cols, std::nanf(""));
  for (int64_t k = 0; k < d; k += dmic::kTileDepth) {
    const int64_t depth = std::min(dmic::kTileDepth, d - k);
    const std::vector<float> packed_x = pack(x, rows, kernels.panel_rows, k, depth);
    const std::vector<float> packed_y = pack(y, cols, kernels.panel_cols, k, depth);
    kernels.tile(packed_x.data(), packed_y.data(), rows, cols, depth, k == 0, scores.data(), cols);
  }
  return scores;
}

// Largest error of a tile in units of its bound; every entry within it.
double largest_error(const SimdKernels& kernels, int64_t d, const std::function<float(int64_t k)>& value) {
  const int64_t rows = 2 * kernels.panel_rows, cols = 2 * kernels.panel_cols;
  std::vector<float> x(rows * d), y(cols * d);
  for (int64_t i = 0; i < rows * d; ++i) x[i] = value(i % d);
  for (int64_t j = 0; j < cols * d; ++j) y[j] = value(j % d);
  const auto norm = [d](const float* v) { return std::sqrt(dot_in_sequence(v, v, d)); };
  const std::vector<float> scores = tile_product(kernels, x, y, rows, cols, d);
  double largest = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const float *a = x.data() + i * d, *b = y.data() + j * d;
      long double exact = 0;
      for (int64_t k = 0; k < d; ++k) exact += static_cast<long double>(a[k]) * static_cast<long double>(b[k]);
      const double bound = dmic::tile_error(d) * norm(a) * norm(b) + dmic::kTileUnderflow;
      const double error = std::fabs(static_cast<double>(scores[i * cols + j] - exact));
      check(error <= bound, kernels.name, ": d = ", d, ", off by ", error, ", more than ", bound);
      largest = std::max(largest, error / bound);
    }
  return largest;
}

void tile_products_are_within_their_bound() {
  for_each_level([](const SimdKernels& kernels) {
    std::mt19937_64 random(21);
    const auto uniform = [&] { return static_cast<float>(random() >> 40) * 0x1p-24f; };
    const auto below = [&](int powers) { return -static_cast<int>(random() % powers); };
    for (const int64_t d : {1, 3, 31, 128, 255, 256, 257, 300, 511, 512, 513, 2048 + 32}) {
      const float scale = static_cast<float>(0.5 / std::sqrt(static_cast<double>(d)));  // norms stay below 1
      largest_error(kernels, d, [&](int64_t) { return scale * (0.5f + uniform() * 0x1p-10f); });
      largest_error(kernels, d, [&](int64_t) { return scale * (2 * uniform() - 1); });
      largest_error(kernels, d, [&](int64_t) { return std::ldexp(scale * uniform(), below(60)); });
      largest_error(kernels, d, [&](int64_t) { return std::ldexp(uniform() - 0.5f, below(80) - 65); });
    }
  });
}

// After the first product of a step, each of the others is half a unit in the last place and lost.
void tile_products_can_come_close_to_their_bound() {
  for_each_level([](const SimdKernels& kernels) {
    const auto value = [](int64_t k) { return k % dmic::kTileDepth == 0 ? 0.25f : 0.25f * 0x1p-12f; };
    const double largest = largest_error(kernels, dmic::kTileDepth, value);
    check(largest > 0.95, kernels.name, ": only ", largest, " of the bound");
    largest_error(kernels, 8 * dmic::kTileDepth, value);
  });
}

float rounded_to_bf16(float value) {  // to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// To bfloat16, or to multiples of one over the factor.
float rounded(const RoundedKernels& kernels, float value) {
  return kernels.factor == 1 ? rounded_to_bf16(value) : std::nearbyint(value * kernels.factor) / kernels.factor;
}

void for_each_rounding(const std::function<void(const char* name, const RoundedKernels&)>& test) {
  for_each_level([&](const SimdKernels& kernels) {
    if (kernels.rounded) test(kernels.name, *kernels.rounded);
  });
}

// Tiles of any rows of a wider matrix, as the caller packs them: what is beyond the rows and the columns is zero.
void rounded_products_are_those_of_rounded_rows() {
  for_each_rounding([](const char* name, const RoundedKernels& kernels) {
    std::mt19937_64 random(22);
    const auto uniform = [&] { return static_cast<float>(random() >> 40) * 0x1p-24f; };
    const auto padded = [](int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; };
    for (const int64_t d : {1, 2, 15, 16, 17, 31, 32, 33, 95, 256, 300, 700})
      for (const int64_t count : {1, 13, 14, 15, 16, 17, 32, 40}) {
        const int64_t first = 3, columns = 31 + static_cast<int64_t>(random() % 40);
        const int64_t stride = padded(columns, kernels.panel_cols), most_rows = padded(count, kernels.panel_rows);
        const int64_t depth = padded(std::min<int64_t>(d, 256), kernels.step);
        std::vector<float> matrix((first + 80) * d), scores(most_rows * stride, std::nanf(""));
        const float size = static_cast<float>(1 / std::sqrt(static_cast<double>(d)));  // rows are no longer than 1
        for (float& value : matrix) value = std::ldexp(size * (2 * uniform() - 1), 2 - static_cast<int>(random() % 12));
        const float scale = 0.25f, unit = 1 / (kernels.factor * kernels.factor);
        struct alignas(64) Line {
          std::byte values[64];
        };
        const auto lines = [&](int64_t rows) { return std::vector<Line>(rows * depth * kernels.value_bytes / 64 + 1); };
        std::vector<Line> rows = lines(most_rows), cols = lines(stride);
        for (int64_t k = 0; k < d; k += 256) {
          const int64_t part = std::min<int64_t>(256, d - k);
          kernels.pack_rows(matrix.data(), d, first, count, k, part, scale * kernels.factor, rows[0].values);
          kernels.pack_cols(matrix.data(), d, 0, columns, k, part, scale * kernels.factor, cols[0].values);
          kernels.tile(rows[0].values, cols[0].values, most_rows, stride, padded(part, kernels.step), k == 0, unit,
                       scores.data(), stride);
        }
        for (int64_t r = 0; r < most_rows; ++r)
          for (int64_t c = 0; c < stride; ++c) {
            double exact = 0, x_sq = 0, y_sq = 0;
            for (int64_t k = 0; k < d && r < count && c < columns; ++k) {
              const double x = rounded(kernels, scale * matrix[(first + r) * d + k]);
              const double y = rounded(kernels, scale * matrix[c * d + k]);
              exact += x * y;
              x_sq += x * x;
              y_sq += y * y;
            }
            const double error = std::fabs(scores[r * stride + c] - exact);
            const double bound = kernels.tile_error(d) * std::sqrt(x_sq * y_sq);
            check(error <= bound, name, ": d = ", d, ", row ", r, ", column ", c, ": off by ", error);
          }
      }
  });
}

// Rows of one value that is 1 or -1: the largest products there are, and the largest sums.
void rounded_products_do_not_overflow() {
  for_each_rounding([](const char* name, const RoundedKernels& kernels) {
    const int64_t d = 256, rows = kernels.panel_rows, cols = kernels.panel_cols;
    struct alignas(64) Line {
      std::byte values[64];
    };
    for (const int64_t spread : {int64_t{1}, int64_t{4}, d}) {
      std::vector<float> matrix((rows + cols) * d), scores(rows * cols);
      for (int64_t i = 0; i < rows + cols; ++i)
        for (int64_t k = 0; k < spread; ++k) matrix[i * d + k] = static_cast<float>((i % 2 ? -1 : 1) / std::sqrt(spread));
      std::vector<Line> left(rows * d * kernels.value_bytes / 64 + 1), right(cols * d * kernels.value_bytes / 64 + 1);
      kernels.pack_rows(matrix.data(), d, 0, rows, 0, d, kernels.factor, left[0].values);
      kernels.pack_cols(matrix.data(), d, rows, cols, 0, d, kernels.factor, right[0].values);
      kernels.tile(left[0].values, right[0].values, rows, cols, d, true, 1 / (kernels.factor * kernels.factor),
                   scores.data(), cols);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) {
          const float want = (r + rows + c) % 2 ? -1 : 1;
          check(std::fabs(scores[r * cols + c] - want) < 1e-3f, name, ": got ", scores[r * cols + c], ", not ", want);
        }
    }
  });
}

void residuals_are_what_rounding_takes() {
  for_each_rounding([](const char* name, const RoundedKernels& kernels) {
    std::mt19937_64 random(23);
    for (const int64_t d : {0, 1, 15, 16, 17, 31, 32, 33, 500, 512, 2047, 4100}) {
      std::vector<float> x(d);
      double lost = 0;
      for (float& value : x) {
        value = std::ldexp(static_cast<float>(random() >> 40) * 0x1p-24f - 0.5f, -static_cast<int>(random() % 20));
        const double scaled = 0.5f * value, kept = rounded(kernels, 0.5f * value);
        lost += (scaled - kept) * (scaled - kept);
      }
      const double got = kernels.residual(x.data(), d, 0.5f * kernels.factor) / kernels.factor / kernels.factor;
      check(std::fabs(got - lost) <= 1e-4 * lost, name, ": d = ", d, ", got ", got, ", not ", lost);
    }
  });
}

void what_is_rounded_up_stays_as_it_is() {
  for_each_rounding([](const char* name, const RoundedKernels& kernels) {
    std::mt19937_64 random(24);
    for (int turn = 0; turn < 10000; ++turn) {
      const float x = std::ldexp(static_cast<float>(random() >> 40) * 0x1p-24f, -static_cast<int>(random() % 20));
      const float above = kernels.above(x), step = kernels.factor == 1 ? x * 0x1p-6f : 1 / kernels.factor;
      check(above >= x && above <= x + step, name, ": ", above, " of ", x);
      check(rounded(kernels, above) == above, name, ": ", above, " is rounded");
    }
    check(kernels.above(0) == 0 && kernels.above(1) == 1, name, ": 0 and 1 stay");
  });
}

struct Filtered {  // a row of scores, and what a filter of one row needs
  Filtered(int64_t cols, std::mt19937_64& random) : scores(cols), norm(cols), limit(cols), length(cols) {
    const auto uniform = [&] { return static_cast<float>(random() >> 40) * 0x1p-24f; };
    for (int64_t c = 0; c < cols; ++c) {
      scores[c] = 2 * uniform() - 1;
      norm[c] = uniform();
      limit[c] = 4 * uniform() - 2;
      length[c] = uniform();
    }
    row_reach = 0.01f * uniform();
    row_norm = uniform();
    row_limit = 4 * uniform() - 2;
  }
  float row_score(int64_t c) const { return 2 * scores[c] - norm[c]; }
  float col_score(int64_t c) const { return 2 * scores[c] - row_norm; }
  float slack(int64_t c) const { return row_reach * length[c]; }

  std::vector<float> scores, norm, limit, length;
  float row_reach, row_norm, row_limit;
};

void check_filter(const SimdKernels& kernels, const Filtered& f, int64_t begin) {
  const int64_t cols = static_cast<int64_t>(f.scores.size());
  constexpr int32_t kRow = 2;  // of a tile
  const float reach[] = {0, 0, f.row_reach}, norm[] = {0, 0, f.row_norm}, limit[] = {0, 0, f.row_limit};
  const TileFilter filter{reach, norm, limit, nullptr, f.norm.data(), f.limit.data(), f.length.data()};
  std::vector<TileHit> hits(cols);
  const int64_t found = kernels.filter(f.scores.data(), kRow, begin, cols, filter, hits.data());
  int64_t expected = 0;
  for (int64_t c = begin; c < cols; ++c) {
    const bool for_row = f.row_score(c) + f.slack(c) >= f.row_limit;
    const bool for_col = f.col_score(c) + f.slack(c) >= f.limit[c];
    if (!for_row && !for_col) continue;
    check(expected < found, kernels.name, ": column ", c, " of ", cols, " is missing");
    const TileHit& hit = hits[expected++];
    check(hit.row == kRow && hit.col == c && hit.for_row == for_row && hit.for_col == for_col &&
              hit.row_score == f.row_score(c) && hit.col_score == f.col_score(c),
          kernels.name, ": hit ", expected, " is not column ", c, " of ", cols);
  }
  check(found == expected, kernels.name, ": ", found, " hits, not ", expected);
}

void filters_keep_what_a_plain_loop_keeps() {
  for_each_level([](const SimdKernels& kernels) {
    std::mt19937_64 random(31);
    for (int64_t cols = 1; cols < 90; ++cols) {
      Filtered f(cols, random);
      for (const int64_t begin : {int64_t{0}, int64_t{1}, cols / 2, cols}) check_filter(kernels, f, begin);
      f.row_limit = -INFINITY;  // as at the start of a search
      check_filter(kernels, f, 0);
    }
  });
}

// One score that just reaches its limit, of the row or of its column, among many that do not.
void filters_keep_a_single_score_at_its_limit() {
  for_each_level([](const SimdKernels& kernels) {
    std::mt19937_64 random(32);
    for (const int64_t cols : {1, 16, 47, 512})
      for (int64_t c = 0; c < cols; ++c) {
        Filtered f(cols, random);
        f.limit.assign(cols, 10);
        f.row_limit = 10;
        check_filter(kernels, f, 0);
        f.limit[c] = f.col_score(c) + f.slack(c);
        check_filter(kernels, f, 0);
        f.limit[c] = 10;
        f.scores[c] = 1;
        f.norm[c] = -1;
        f.row_limit = f.row_score(c) + f.slack(c);
        check_filter(kernels, f, 0);
      }
  });
}

// Around the distance lies what a key may be off by, and hardly more: for keys of all sizes, down to underflow.
void bounds_hold_whatever_a_key_may_be_off_by() {
  for_each_level([](const SimdKernels& kernels) {
    std::mt19937_64 random(51);
    const auto value = [&] {
      return std::ldexp(0.5f + static_cast<float>(random() >> 40) * 0x1p-25f, -static_cast<int>(random() % 60));
    };
    for (int64_t count = 0; count < 70; ++count) {
      std::vector<float> length(100), keys(count), lower(count), upper(count);
      std::vector<int32_t> idx(count);
      for (float& y : length) y = value();
      const float norm = value(), reach = (count % 2 ? 5 : 1) * value() * std::sqrt(norm);
      for (int64_t t = 0; t < count; ++t) {
        idx[t] = static_cast<int32_t>(random() % 100);
        keys[t] = length[idx[t]] * length[idx[t]] - 2 * std::sqrt(norm) * length[idx[t]] * (value() - value());
      }
      kernels.bounds(keys.data(), idx.data(), count, length.data(), norm, reach, lower.data(), upper.data());
      for (int64_t t = 0; t < count; ++t) {
        const double y = length[idx[t]], distance = static_cast<double>(norm) + keys[t];
        const double rounding = (norm + y * y) * 0x1p-24;
        const double least = reach * y + 32 * rounding + 0x1p-98, most = reach * y * (1 + 0x1p-20) + 64 * rounding + 0x1p-96;
        check(lower[t] <= distance - least && upper[t] >= distance + least, kernels.name, ": bounds too near, key ", t);
        check(lower[t] >= distance - most && upper[t] <= distance + most, kernels.name, ": bounds too far, key ", t);
      }
    }
  });
}

// Values of many magnitudes, equal ones, zero, subnormal ones and infinity.
void select_finds_what_sorting_finds() {
  for_each_level([](const SimdKernels& kernels) {
    std::mt19937_64 random(52);
    for (int64_t count = 1; count < 180; ++count)
      for (const int kinds : {1, 2, 7, 1000}) {
        std::vector<float> values(count);
        for (float& value : values) {
          const int kind = static_cast<int>(random() % kinds);
          value = kind == 0 ? 0.0f : kind == 1 ? INFINITY : std::ldexp(static_cast<float>(kind), 5 * (kind % 60) - 149);
        }
        std::vector<float> sorted = values;
        std::sort(sorted.begin(), sorted.end());
        for (int64_t k = 1; k <= count; ++k) {
          const float got = kernels.select(values.data(), count, k);
          check(got == sorted[k - 1], kernels.name, ": got ", got, ", not ", sorted[k - 1], " for ", k, " of ", count);
        }
      }
  });
}

void overlaps_add_the_smaller_weights() {
  for_each_level([](const SimdKernels& kernels) {
    std::mt19937_64 random(41);
    for (int64_t count = 0; count < 70; ++count) {
      std::vector<int32_t> dense(200, 0), cols(count), values(count);
      int64_t expected = 0;
      for (int64_t t = 0; t < count; ++t) {
        cols[t] = static_cast<int32_t>(2 * t + random() % 2);
        const uint64_t limit = dmic::kOne / static_cast<uint64_t>(count);
        values[t] = static_cast<int32_t>(random() % limit);
        dense[cols[t]] = static_cast<int32_t>(random() % limit);
        expected += std::min(values[t], dense[cols[t]]);
      }
      const int64_t got = kernels.overlap(dense.data(), cols.data(), values.data(), count);
      check(got == expected, kernels.name, ": ", got, " from ", count, " columns, not ", expected);
    }
    const int32_t whole = dmic::kOne, column = 0;
    check(kernels.overlap(&whole, &column, &whole, 1) == dmic::kOne, "a row overlaps itself whole");
  });
}

}  // namespace

int main() {
  return check_claims({
      {"levels are chosen by name", levels_are_chosen_by_name},
      {"dots add in the canonical order", dots_add_in_the_canonical_order},
      {"no rows have no dots", no_rows_have_no_dots},
      {"tile products are within their bound", tile_products_are_within_their_bound},
      {"tile products can come close to their bound", tile_products_can_come_close_to_their_bound},
      {"rounded products are those of rounded rows", rounded_products_are_those_of_rounded_rows},
      {"rounded products do not overflow", rounded_products_do_not_overflow},
      {"residuals are what rounding takes", residuals_are_what_rounding_takes},
      {"what is rounded up stays as it is", what_is_rounded_up_stays_as_it_is},
      {"filters keep what a plain loop keeps", filters_keep_what_a_plain_loop_keeps},
      {"filters keep a single score at its limit", filters_keep_a_single_score_at_its_limit},
      {"bounds hold whatever a key may be off by", bounds_hold_whatever_a_key_may_be_off_by},
      {"select finds what sorting finds", select_finds_what_sorting_finds},
      {"overlaps add the smaller weights", overlaps_add_the_smaller_weights},
  });
}
