// AVX-512 level: 16 floats and 8 doubles a register, fused multiply-add.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>

#include "../canonical/dot.h"
#include "simd.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // the headers' _mm512_undefined_*, GCC bug 105593
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
  static inline bool any_at_least(Floats a, Floats b, Floats c, Floats d) {
    return (_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) | _mm512_cmp_ps_mask(c, d, _CMP_GE_OQ)) != 0;
  }
  static inline Doubles zero_doubles() { return _mm512_setzero_pd(); }
  static inline Doubles load_doubles(const double* p) { return _mm512_loadu_pd(p); }
  static inline void store_doubles(double* p, Doubles x) { _mm512_storeu_pd(p, x); }
  static inline Doubles widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return _mm512_fmadd_pd(x, y, z); }
};

#include "simd_kernels.inl"

}  // namespace dmic::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dmic {
extern const SimdKernels kSimdAvx512 = avx512::kKernels;
}
#endif
