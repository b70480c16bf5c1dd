// AVX-512 level: 16 floats and 8 doubles a register, fused multiply-add. The levels beyond are the same with tile
// products of rows that are rounded: to int16 with VNNI, to bfloat16 with AMX.
#if defined(__x86_64__)
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../canonical/dot.h"
#include "simd.h"

#if DMIC_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // the headers' _mm512_undefined_*, GCC bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif

namespace dmic::avx512 {

struct Simd {
  static constexpr const char* kName = "avx512";
  static constexpr int kFloats = 16, kDoubles = 8, kDotRegisters = 16, kPanelRows = 14;
  using Floats = __m512;
  using Doubles = __m512d;
  static inline Floats zero_floats() { return _mm512_setzero_ps(); }
  static inline Floats splat(float x) { return _mm512_set1_ps(x); }
  static inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static inline void store_floats(float* p, Floats x) { _mm512_storeu_ps(p, x); }
  static inline Floats add(Floats x, Floats y) { return _mm512_add_ps(x, y); }
  static inline Floats subtract(Floats x, Floats y) { return _mm512_sub_ps(x, y); }
  static inline Floats multiply(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
  static inline Floats multiply_add(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }
  static inline uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static inline Doubles zero_doubles() { return _mm512_setzero_pd(); }
  static inline Doubles load_doubles(const double* p) { return _mm512_loadu_pd(p); }
  static inline void store_doubles(double* p, Doubles x) { _mm512_storeu_pd(p, x); }
  static inline Doubles widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return _mm512_fmadd_pd(x, y, z); }
};

#include "simd_kernels.inl"

constexpr int64_t kLineBytes = 64;

// 32 values times scale, those from `count` on zero.
struct Step {
  Step(const float* x, int64_t count, __m512 scale) {
    const __mmask16 low = _cvtu32_mask16(count >= 16 ? 0xffff : (1u << count) - 1);
    const __mmask16 high = _cvtu32_mask16(count >= 32 ? 0xffff : count <= 16 ? 0 : (1u << (count - 16)) - 1);
    first = _mm512_mul_ps(_mm512_maskz_loadu_ps(low, x), scale);
    second = _mm512_mul_ps(_mm512_maskz_loadu_ps(high, x + 16), scale);
  }
  __m512 first, second;
};

// A 16 x 16 matrix of 32-bit words becomes its transpose.
inline void transpose(__m512i* a) {
  __m512i b[16];
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4) {
    a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_shuffle_i32x4(a[c], a[c + 4], 0x88), odd = _mm512_shuffle_i32x4(a[c], a[c + 4], 0xdd);
    const __m512i even_2 = _mm512_shuffle_i32x4(a[c + 8], a[c + 12], 0x88);
    const __m512i odd_2 = _mm512_shuffle_i32x4(a[c + 8], a[c + 12], 0xdd);
    b[c] = _mm512_shuffle_i32x4(even, even_2, 0x88);
    b[c + 8] = _mm512_shuffle_i32x4(even, even_2, 0xdd);
    b[c + 4] = _mm512_shuffle_i32x4(odd, odd_2, 0x88);
    b[c + 12] = _mm512_shuffle_i32x4(odd, odd_2, 0xdd);
  }
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) a[r] = b[r];
}

constexpr SimdKernels rounding(const char* name, const RoundedKernels* rounded) {
  SimdKernels kernels = kKernels;
  kernels.name = name;
  kernels.rounded = rounded;
  return kernels;
}

}  // namespace dmic::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dmic {
extern const SimdKernels kSimdAvx512 = avx512::kKernels;
}

#if DMIC_AMX
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#endif

namespace dmic::vnni {

using avx512::kLineBytes;
constexpr int64_t kPanelRows = 14, kPanelCols = 32, kStep = 32;
constexpr int64_t kWordBytes = 4, kWords = kLineBytes / kWordBytes;  // products are of the two columns of a word
constexpr float kFactor = 0x1p14f;  // so that no sum of a step, at most its square, overflows

// A step of a row, to the nearest integers.
inline __m512i round_step(const float* x, int64_t count, __m512 scale) {
  const avx512::Step step(x, count, scale);
  const __m256i first = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(step.first));
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(step.second)), 1);
}

// A step of up to 16 rows: lines of a word of each row.
inline void round_rows(const float* matrix, int64_t d, int64_t rows, int64_t columns, __m512 scale, __m512i* lines) {
#pragma GCC unroll 16
  for (int64_t r = 0; r < 16; ++r) lines[r] = r < rows ? round_step(matrix + r * d, columns, scale) : _mm512_setzero_si512();
  avx512::transpose(lines);
}

void pack_rows(const float* matrix, int64_t d, int64_t first, int64_t count, int64_t begin, int64_t depth, float scale,
               std::byte* out) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t panel = 0; panel < count; panel += kPanelRows)
    for (int64_t k = 0; k < depth; k += kStep) {
      const int64_t rows = count - panel < kPanelRows ? count - panel : kPanelRows;
      __m512i lines[kWords];
      round_rows(matrix + (first + panel) * d + begin + k, d, rows, depth - k, factor, lines);
#pragma GCC unroll 16
      for (int64_t word = 0; word < kWords; ++word, out += kPanelRows * kWordBytes)
        _mm512_mask_storeu_epi32(out, (1u << kPanelRows) - 1, lines[word]);
    }
}

void pack_cols(const float* matrix, int64_t d, int64_t first, int64_t count, int64_t begin, int64_t depth, float scale,
               std::byte* out) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t panel = 0; panel < count; panel += kPanelCols)
    for (int64_t k = 0; k < depth; k += kStep, out += kPanelCols * kWords * kWordBytes)
      for (int64_t half = 0; half < kPanelCols; half += 16) {
        const int64_t rows = count - panel - half;
        __m512i lines[kWords];
        round_rows(matrix + (first + panel + half) * d + begin + k, d, rows, depth - k, factor, lines);
#pragma GCC unroll 16
        for (int64_t word = 0; word < kWords; ++word)
          _mm512_store_si512(out + (word * kPanelCols + half) * kWordBytes, lines[word]);
      }
}

// _mm512_dpwssd_epi32, with which GCC 12 keeps sums in memory too.
inline void multiply_add(__m512i& sum, __m512i x, __m512i y) { __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y)); }

// One panel: kPanelRows x kPanelCols sums in registers over the whole depth.
inline void tile_panel(const std::byte* rows, const std::byte* cols, int64_t words, bool first, __m512 unit, float* scores,
                       int64_t stride) {
  __m512i sum[kPanelRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kPanelRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; ++w) {
    const __m512i left = _mm512_load_si512(cols), right = _mm512_load_si512(cols + kLineBytes);
#pragma GCC unroll 16
    for (int r = 0; r < kPanelRows; ++r) {
      int32_t word;
      std::memcpy(&word, rows + r * kWordBytes, kWordBytes);
      const __m512i x = _mm512_set1_epi32(word);
      multiply_add(sum[r][0], x, left);
      multiply_add(sum[r][1], x, right);
    }
    rows += kPanelRows * kWordBytes;
    cols += kPanelCols * kWordBytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kPanelRows; ++r) {
    float* out = scores + r * stride;
    __m512 left = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][0]), unit);
    __m512 right = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][1]), unit);
    if (!first) {
      left = _mm512_add_ps(left, _mm512_loadu_ps(out));
      right = _mm512_add_ps(right, _mm512_loadu_ps(out + 16));
    }
    _mm512_storeu_ps(out, left);
    _mm512_storeu_ps(out + 16, right);
  }
}

void tile(const std::byte* packed_rows, const std::byte* packed_cols, int64_t rows, int64_t cols, int64_t depth, bool first,
          float unit, float* scores, int64_t stride) {
  const int64_t words = depth * 2 / kWordBytes;
  for (int64_t c = 0; c < cols; c += kPanelCols)
    for (int64_t r = 0; r < rows; r += kPanelRows)
      tile_panel(packed_rows + r * words * kWordBytes, packed_cols + c * words * kWordBytes, words, first,
                 _mm512_set1_ps(unit), scores + r * stride + c, stride);
}

double residual(const float* x, int64_t d, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  double total = 0;
  for (int64_t k = 0; k < d; k += 16) {
    const __mmask16 inside = _cvtu32_mask16(d - k >= 16 ? 0xffff : (1u << (d - k)) - 1);
    const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(inside, x + k), factor);
    const __m512 lost = _mm512_sub_ps(value, _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    sum = _mm512_fmadd_ps(lost, lost, sum);
    if ((k + 16) % 512 == 0 || k + 16 >= d) {  // 32 additions each: float32 is enough, as its user knows
      total += _mm512_reduce_add_ps(sum);
      sum = _mm512_setzero_ps();
    }
  }
  return total;
}

float above(float x) { return std::ceil(x * kFactor) / kFactor; }

constexpr RoundedKernels kInt16{kPanelRows, kPanelCols, kStep,     2,         kFactor, int16_tile_error,
                                above,      pack_rows,  pack_cols, tile,      residual};

}  // namespace dmic::vnni

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dmic {
extern const SimdKernels kSimdVnni = avx512::rounding("vnni", &vnni::kInt16);
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")
#endif

namespace dmic::amx {

constexpr int64_t kTile = 16;                          // rows of a tile register, of 64 bytes each
constexpr int64_t kPanel = 2 * kTile, kStep = 32;
constexpr int64_t kTileBytes = kTile * avx512::kLineBytes;

// A step of a row as bfloat16, to nearest even; denormal values become zero.
inline __m512i round_step(const float* x, int64_t count, __m512 scale) {
  const avx512::Step step(x, count, scale);
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(step.second, step.first));
}

// Tiles of 16 rows and one step, all steps of a panel of 16 rows one after the other.
void pack_rows(const float* matrix, int64_t d, int64_t first, int64_t count, int64_t begin, int64_t depth, float scale,
               std::byte* out) {
  const __m512 factor = _mm512_set1_ps(scale);
  const int64_t padded = (count + kPanel - 1) / kPanel * kPanel, steps = (depth + kStep - 1) / kStep;
  for (int64_t panel = 0; panel < padded; panel += kTile, out += steps * kTileBytes)
    for (int64_t r = 0; r < kTile; ++r) {
      const float* x = matrix + (first + panel + r) * d + begin;
      for (int64_t step = 0; step < steps; ++step) {
        const bool inside = panel + r < count;
        const int64_t k = step * kStep;
        const __m512i values = inside ? round_step(x + k, depth - k, factor) : _mm512_setzero_si512();
        _mm512_store_si512(out + step * kTileBytes + r * avx512::kLineBytes, values);
      }
    }
}

// The same tiles with pairs of columns in the place of columns: what the second operand of the product wants.
void pack_cols(const float* matrix, int64_t d, int64_t first, int64_t count, int64_t begin, int64_t depth, float scale,
               std::byte* out) {
  pack_rows(matrix, d, first, count, begin, depth, scale, out);
  const int64_t tiles = (count + kPanel - 1) / kPanel * (kPanel / kTile) * ((depth + kStep - 1) / kStep);
  for (int64_t t = 0; t < tiles; ++t, out += kTileBytes) {
    __m512i lines[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) lines[r] = _mm512_load_si512(out + r * avx512::kLineBytes);
    avx512::transpose(lines);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) _mm512_store_si512(out + r * avx512::kLineBytes, lines[r]);
  }
}

struct alignas(64) TileConfig {  // eight registers of 16 rows of 64 bytes
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Blocks of 2 x 2 tiles of scores stay in registers over the whole depth.
void tile(const std::byte* packed_rows, const std::byte* packed_cols, int64_t rows, int64_t cols, int64_t depth, bool first,
          float /*unit*/, float* scores, int64_t stride) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t bytes = stride * sizeof(float);
  for (int64_t c = 0; c < cols; c += 2 * kTile)
    for (int64_t r = 0; r < rows; r += 2 * kTile) {
      float* block = scores + r * stride + c;
      float* below = block + kTile * stride;
      if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      } else {
        _tile_loadd(0, block, bytes);
        _tile_loadd(1, block + kTile, bytes);
        _tile_loadd(2, below, bytes);
        _tile_loadd(3, below + kTile, bytes);
      }
      const int64_t steps = depth / kStep;
      const std::byte* left = packed_rows + r / kTile * steps * kTileBytes;
      const std::byte* right = packed_cols + c / kTile * steps * kTileBytes;
      for (int64_t step = 0; step < steps; ++step) {
        _tile_loadd(4, left + step * kTileBytes, 64);
        _tile_loadd(5, left + (step + steps) * kTileBytes, 64);
        _tile_loadd(6, right + step * kTileBytes, 64);
        _tile_loadd(7, right + (step + steps) * kTileBytes, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, block, bytes);
      _tile_stored(1, block + kTile, bytes);
      _tile_stored(2, below, bytes);
      _tile_stored(3, below + kTile, bytes);
    }
  _tile_release();
}

double residual(const float* x, int64_t d, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  double total = 0;
  for (int64_t k = 0; k < d; k += kStep) {
    const __m512i rounded = round_step(x + k, d - k, factor);
    for (int half = 0; half < 2; ++half) {
      const int64_t left = d - k - 16 * half;
      if (left <= 0) break;
      const __mmask16 mask = _cvtu32_mask16(left >= 16 ? 0xffff : (1u << left) - 1);
      const __m256i part = half ? _mm512_extracti64x4_epi64(rounded, 1) : _mm512_castsi512_si256(rounded);
      const __m512 kept = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16));
      const __m512 lost = _mm512_sub_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + k + 16 * half), factor), kept);
      sum = _mm512_fmadd_ps(lost, lost, sum);
    }
    if ((k + kStep) % 512 == 0 || k + kStep >= d) {  // 32 additions each: float32 is enough, as its user knows
      total += _mm512_reduce_add_ps(sum);
      sum = _mm512_setzero_ps();
    }
  }
  return total;
}

float above(float x) {
  const uint32_t bits = (std::bit_cast<uint32_t>(x) + 0xffff) & 0xffff0000;
  return std::bit_cast<float>(bits);
}

constexpr RoundedKernels kBf16{kPanel, kPanel, kStep, 2, 1, bf16_tile_error, above, pack_rows, pack_cols, tile, residual};

}  // namespace dmic::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dmic {

extern const SimdKernels kSimdAmx = avx512::rounding("amx", &amx::kBf16);

// Whether the processor and the system have AMX, and the system lets this process use its registers.
bool amx_available() {
  static const bool available = [] {
    unsigned a, b, c, d;
    constexpr unsigned kAmx = 1u << 22 | 1u << 24, kAvx512Bf16 = 1u << 5;  // CPUID, leaf 7: AMX-BF16 and AMX-TILE
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmx) != kAmx) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kAvx512Bf16)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return available;
}

}  // namespace dmic
#endif
#endif
