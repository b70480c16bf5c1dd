// Bodies of the vectorised loops. Included once per instruction set, inside a namespace and under a target pragma, with
// a traits struct `Simd`: Floats (kFloats lanes), Doubles (kDoubles lanes), kDotRegisters, kPanelRows, and the operations used below.

constexpr int64_t kPanelCols = 2 * Simd::kFloats;

void dots(const float* x, const float* base, int64_t d, const int32_t* idx, int64_t count, double* wide, double* out) {
  constexpr int kRegisters = Simd::kDotRegisters, kDoubles = Simd::kDoubles;
  constexpr int kGroup = kRegisters * kDoubles;  // partial sums held in registers at a time
  const int64_t whole = d / kDotLanes * kDotLanes;
  wide = on_cache_line(wide);  // or every load crosses one: half as long again where rows are in the cache
  for (int64_t k = 0; k < d; ++k) wide[k] = x[k];
  for (int64_t t = 0; t < count; ++t) {
    const float* y = base + static_cast<int64_t>(idx[t]) * d;
    if (t + 1 < count) {
      const float* next = base + static_cast<int64_t>(idx[t + 1]) * d;
      for (int64_t k = 0; k < d && k < 512; k += 16) __builtin_prefetch(next + k);
    }
    alignas(64) double sums[kDotLanes];
    for (int group = 0; group < kDotLanes; group += kGroup) {
      typename Simd::Doubles sum[kRegisters];
#pragma GCC unroll 16
      for (int r = 0; r < kRegisters; ++r) sum[r] = Simd::zero_doubles();
      for (int64_t k = group; k < whole; k += kDotLanes) {
#pragma GCC unroll 16
        for (int r = 0; r < kRegisters; ++r)
          sum[r] = Simd::multiply_add(Simd::load_doubles(wide + k + r * kDoubles), Simd::widen(y + k + r * kDoubles), sum[r]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRegisters; ++r) Simd::store_doubles(sums + group + r * kDoubles, sum[r]);
    }
    for (int64_t k = whole; k < d; ++k) sums[k - whole] += wide[k] * static_cast<double>(y[k]);
    out[t] = fold_dot_lanes(sums);
  }
}

// One panel: kPanelRows x kPanelCols scores in registers over the whole depth.
inline void tile_panel(const float* rows, const float* cols, int64_t depth, bool first, float* scores, int64_t stride) {
  constexpr int kRows = Simd::kPanelRows;
  typename Simd::Floats sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Simd::zero_floats();
  for (int64_t k = 0; k < depth; ++k) {
    const auto left = Simd::load_floats(cols + k * kPanelCols);
    const auto right = Simd::load_floats(cols + k * kPanelCols + Simd::kFloats);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto x = Simd::splat(rows[k * kRows + r]);
      sum[r][0] = Simd::multiply_add(x, left, sum[r][0]);
      sum[r][1] = Simd::multiply_add(x, right, sum[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* out = scores + r * stride;
    if (!first) {
      sum[r][0] = Simd::add(sum[r][0], Simd::load_floats(out));
      sum[r][1] = Simd::add(sum[r][1], Simd::load_floats(out + Simd::kFloats));
    }
    Simd::store_floats(out, sum[r][0]);
    Simd::store_floats(out + Simd::kFloats, sum[r][1]);
  }
}

void tile(const float* packed_rows, const float* packed_cols, int64_t rows, int64_t cols, int64_t depth, bool first,
          float* scores, int64_t stride) {
  for (int64_t c = 0; c < cols; c += kPanelCols)
    for (int64_t r = 0; r < rows; r += Simd::kPanelRows)
      tile_panel(packed_rows + r * depth, packed_cols + c * depth, depth, first, scores + r * stride + c, stride);
}

// Appends the columns `which` of a row from column c on.
__attribute__((noinline)) TileHit* take(const float* scores, int32_t row, int64_t c, uint64_t for_row, uint64_t for_col,
                                        const TileFilter& f, TileHit* hits) {
  const float row_norm = f.row_norm[row];
  for (uint64_t left = for_row | for_col; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const float twice = 2.0f * scores[c + lane];
    *hits++ = {row, static_cast<int32_t>(c + lane), twice - f.col_norm[c + lane], twice - row_norm,
               static_cast<bool>(for_row >> lane & 1), static_cast<bool>(for_col >> lane & 1)};
  }
  return hits;
}

int64_t filter(const float* scores, int32_t row, int64_t begin, int64_t cols, const TileFilter& f, TileHit* hits) {
  constexpr int kVectors = 4;  // between two branches
  const float row_norm = f.row_norm[row], row_limit = f.row_limit[row], row_reach = f.row_reach[row];
  const auto norms = Simd::splat(row_norm), limits = Simd::splat(row_limit), reaches = Simd::splat(row_reach);
  const float *lengths = f.col_length, *col_norms = f.col_norm, *col_limits = f.col_limit;
  TileHit* next = hits;
  int64_t c = begin;
  for (; c + kVectors * Simd::kFloats <= cols; c += kVectors * Simd::kFloats) {
    uint64_t for_row = 0, for_col = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = c + v * Simd::kFloats;
      const auto score = Simd::load_floats(scores + at);
      const auto twice = Simd::add(score, score);
      const auto reach = Simd::multiply(reaches, Simd::load_floats(lengths + at));
      const auto row_score = Simd::add(Simd::subtract(twice, Simd::load_floats(col_norms + at)), reach);
      const auto col_score = Simd::add(Simd::subtract(twice, norms), reach);
      for_row |= uint64_t{Simd::at_least(row_score, limits)} << (v * Simd::kFloats);
      for_col |= uint64_t{Simd::at_least(col_score, Simd::load_floats(col_limits + at))} << (v * Simd::kFloats);
    }
    if (for_row | for_col) [[unlikely]] next = take(scores, row, c, for_row, for_col, f, next);
  }
  for (; c < cols; ++c) {
    const float twice = 2.0f * scores[c], reach = row_reach * f.col_length[c];
    const bool for_row = twice - f.col_norm[c] + reach >= row_limit, for_col = twice - row_norm + reach >= f.col_limit[c];
    if (for_row || for_col) next = take(scores, row, c, for_row, for_col, f, next);
  }
  return next - hits;
}

void bounds(const float* keys, const int32_t* idx, int64_t count, const float* length, float norm, float reach,
            float* lower, float* upper) {
  for (int64_t t = 0; t < count; ++t) {
    const float y = length[idx[t]], distance = norm + keys[t];
    const float error = reach * y + kKeyError * (norm + y * y) + 8 * static_cast<float>(kTileUnderflow);
    lower[t] = distance - error;
    upper[t] = distance + error;
  }
}

// By halving the range of the bits, which are in the order of the values.
float select(const float* values, int64_t count, int64_t k) {
  int32_t low = INT32_MAX, high = 0;
  for (int64_t t = 0; t < count; ++t) {
    const int32_t bits = std::bit_cast<int32_t>(values[t]);
    low = bits < low ? bits : low;
    high = bits > high ? bits : high;
  }
  while (low < high) {  // the k-th is in [low, high]
    const int32_t middle = low + (high - low) / 2;
    int32_t at_most = 0, largest = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int32_t bits = std::bit_cast<int32_t>(values[t]), inside = bits <= middle ? bits : -1;
      at_most += inside >= 0;
      largest = inside > largest ? inside : largest;
    }
    if (at_most == k) return std::bit_cast<float>(largest);
    if (at_most > k) high = largest;
    else low = middle + 1;
  }
  return std::bit_cast<float>(low);
}

int64_t overlap(const int32_t* dense, const int32_t* cols, const int32_t* values, int64_t count) {
  int32_t sum = 0;  // rows sum to 2^30, so no partial sum overflows
  for (int64_t t = 0; t < count; ++t) {
    const int32_t mine = dense[cols[t]];
    sum += mine < values[t] ? mine : values[t];
  }
  return sum;
}

constexpr SimdKernels kKernels{Simd::kName, Simd::kPanelRows, kPanelCols, dots, tile, filter, bounds, select, overlap};
