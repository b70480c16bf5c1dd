// The vectorised inner loops, compiled once per instruction set and chosen at run time. Every level returns the same
// bits: the dot product by its fixed order, the overlap because it is an integer; the tile product is approximate
// and only proposes candidates, within the error bound stated here.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define DMIC_AMX 1  // the compiler knows it, and AVX512-VNNI; whether the processor does is asked at run time
#endif

namespace dmic {

// Columns of one product step: partial sums of a tile start from zero every kTileDepth columns.
constexpr int64_t kTileDepth = 256;

// Bound on |tile product - x.y| / (|x| |y|) for rows of d float32: fused or not, at most kTileDepth + 1 roundings in
// a step and one per step. Scaled rows (norms at most 1) add at most kTileUnderflow, even where denormals are flushed.
inline double tile_error(int64_t d) {
  const double n = static_cast<double>(kTileDepth + 1 + (d + kTileDepth - 1) / kTileDepth) * 0x1p-24;
  return n / (1 - n);
}
constexpr double kTileUnderflow = 0x1p-100;

// The same of a product of rows rounded to bfloat16, beside the rounding: exact products, those of two padded steps among
// them, added one by one to float32.
inline double bf16_tile_error(int64_t d) {
  const double n = static_cast<double>(d + 64) * 0x1p-24;
  return n / (1 - n);
}

// And of rows rounded to int16: sums of a step are exact, and become float32 in four roundings and one for each step.
inline double int16_tile_error(int64_t d) {
  const double n = static_cast<double>(4 + (d + kTileDepth - 1) / kTileDepth) * 0x1p-24;
  return n / (1 - n);
}

// 16 roundings of the squared norm of a column, two of the filter's arithmetic, and those of `bounds`.
constexpr float kKeyError = 48 * 0x1p-24f;

struct TileFilter {        // what a tile needs besides its scores; all in scaled units
  const float* row_reach;  // per row: 2 * error bound * |x|, rounded up
  const float* row_norm;   // per row: |x|^2, rounded down
  const float* row_limit;  // per row: scores of at least this survive
  const float* row_length; // per row: |x|, rounded up
  const float* col_norm;   // the same per column
  const float* col_limit;
  const float* col_length;
};

struct TileHit {
  int32_t row, col;        // inside the tile
  float row_score;         // 2 x.y - |y|^2 of the row's view, 2 x.y - |x|^2 of the column's
  float col_score;
  bool for_row, for_col;
};

// Tiles from rows that are rounded to fewer bits, where the processor multiplies such values faster.
struct RoundedKernels {
  int64_t panel_rows, panel_cols;  // rows and columns of a tile are multiples,
  int64_t step;                    // and the depth of packed panels is a multiple of so many columns,
  int64_t value_bytes;             // of which each value takes so many
  float factor;                    // of the scale that brings rows to length 1 at most, a power of two
  double (*tile_error)(int64_t d);
  float (*above)(float x);         // the least number that is not below x >= 0 and that rounding leaves as it is

  // Rows [first, first + count) and columns [begin, begin + depth) of a matrix [.., d], times `scale`, as panels for the
  // rows or for the columns of `tile`: zero up to a multiple of panel_rows or panel_cols, and of step.
  void (*pack_rows)(const float* matrix, int64_t d, int64_t first, int64_t count, int64_t begin, int64_t depth,
                    float scale, std::byte* out);
  void (*pack_cols)(const float* matrix, int64_t d, int64_t first, int64_t count, int64_t begin, int64_t depth,
                    float scale, std::byte* out);

  // As SimdKernels::tile, of such panels; rows, cols and depth are the padded ones, and products are multiplied by
  // `unit`: one over factor^2.
  void (*tile)(const std::byte* packed_rows, const std::byte* packed_cols, int64_t rows, int64_t cols, int64_t depth,
               bool first, float unit, float* scores, int64_t stride);

  // Sum of the squares of what rounding takes from each value of x times `scale`.
  double (*residual)(const float* x, int64_t d, float scale);
};

// The first place of a cache line from p on, less than a line of doubles further.
inline double* on_cache_line(double* p) {
  constexpr std::uintptr_t kLine = 64;
  return reinterpret_cast<double*>((reinterpret_cast<std::uintptr_t>(p) + kLine - 1) / kLine * kLine);
}

struct SimdKernels {
  const char* name;
  int64_t panel_rows;  // a tile has a multiple of these rows ...
  int64_t panel_cols;  // ... and of these columns

  // Canonical dot products of x with rows of base: out[t] = x . base[idx[t]]. wide is scratch of d + kDotLanes.
  void (*dots)(const float* x, const float* base, int64_t d, const int32_t* idx, int64_t count, double* wide,
               double* out);

  // scores[r * stride + c] (+)= sum over depth of packed rows and columns; overwrites when `first`.
  void (*tile)(const float* packed_rows, const float* packed_cols, int64_t rows, int64_t cols, int64_t depth,
               bool first, float* scores, int64_t stride);

  // Survivors of one row of scores in columns [begin, cols); appended to hits, which has room for all.
  int64_t (*filter)(const float* scores, int32_t row, int64_t begin, int64_t cols, const TileFilter& filter,
                    TileHit* hits);

  // Bounds of norm + keys[t], a distance from a sample x of that squared norm to sample y = idx[t], whose key is
  // |y|^2 - 2 x.y as `filter` computes it (its row score, negated): off by reach |y|, with reach <= 5 |x| + 2^-47, and by
  // kKeyError of both squared norms.
  void (*bounds)(const float* keys, const int32_t* idx, int64_t count, const float* length, float norm, float reach,
                 float* lower, float* upper);

  // The k-th smallest of `count` values that are at least 0 (not -0); 1 <= k <= count.
  float (*select)(const float* values, int64_t count, int64_t k);

  // Sum of min(dense[cols[t]], values[t]).
  int64_t (*overlap)(const int32_t* dense, const int32_t* cols, const int32_t* values, int64_t count);

  const RoundedKernels* rounded = nullptr;  // null where float32 is as fast
};

// The level in use: the best one that this processor has, or the one that set_simd_level asked for (tests do).
const SimdKernels& simd();
const char* const* simd_levels();                // names compiled in, slowest first, null-terminated
bool simd_level_available(const char* name);
bool set_simd_level(const char* name);           // false if unknown or not available here; null: choose again

}  // namespace dmic
