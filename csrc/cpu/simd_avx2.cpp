// AVX2 level: 8 floats and 4 doubles a register, fused multiply-add.
#if defined(__x86_64__)
#include <immintrin.h>

#include <bit>
#include <cstdint>

#include "../canonical/dot.h"
#include "simd.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace dmic::avx2 {

struct Simd {
  static constexpr const char* kName = "avx2";
  static constexpr int kFloats = 8, kDoubles = 4, kDotRegisters = 8, kPanelRows = 6;
  using Floats = __m256;
  using Doubles = __m256d;
  static inline Floats zero_floats() { return _mm256_setzero_ps(); }
  static inline Floats splat(float x) { return _mm256_set1_ps(x); }
  static inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static inline void store_floats(float* p, Floats x) { _mm256_storeu_ps(p, x); }
  static inline Floats add(Floats x, Floats y) { return _mm256_add_ps(x, y); }
  static inline Floats subtract(Floats x, Floats y) { return _mm256_sub_ps(x, y); }
  static inline Floats multiply(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
  static inline Floats multiply_add(Floats x, Floats y, Floats z) { return _mm256_fmadd_ps(x, y, z); }
  static inline uint32_t at_least(Floats a, Floats b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }
  static inline Doubles zero_doubles() { return _mm256_setzero_pd(); }
  static inline Doubles load_doubles(const double* p) { return _mm256_loadu_pd(p); }
  static inline void store_doubles(double* p, Doubles x) { _mm256_storeu_pd(p, x); }
  static inline Doubles widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  static inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return _mm256_fmadd_pd(x, y, z); }
};

#include "simd_kernels.inl"

}  // namespace dmic::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dmic {
extern const SimdKernels kSimdAvx2 = avx2::kKernels;
}
#endif
