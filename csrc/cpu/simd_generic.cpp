// The level that every processor has: compiler vectors of 16 bytes, which are SSE2 on x86-64 and NEON on arm64.
#include <bit>
#include <cstdint>
#include <cstring>

#include "../canonical/dot.h"
#include "simd.h"

namespace dmic::generic {

struct Simd {
  static constexpr const char* kName = "generic";
  static constexpr int kFloats = 4, kDoubles = 2, kDotRegisters = 8, kPanelRows = 4;
  typedef float Floats __attribute__((vector_size(16)));
  typedef double Doubles __attribute__((vector_size(16)));
  template <class V, class T>
  static inline V load(const T* p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static inline Floats zero_floats() { return Floats{}; }
  static inline Floats splat(float x) { return Floats{x, x, x, x}; }
  static inline Floats load_floats(const float* p) { return load<Floats>(p); }
  static inline void store_floats(float* p, Floats x) { memcpy(p, &x, sizeof x); }
  static inline Floats add(Floats x, Floats y) { return x + y; }
  static inline Floats subtract(Floats x, Floats y) { return x - y; }
  static inline Floats multiply(Floats x, Floats y) { return x * y; }
  static inline Floats multiply_add(Floats x, Floats y, Floats z) { return x * y + z; }
  static inline uint32_t at_least(Floats a, Floats b) {
    const auto hit = a >= b;
    return (hit[0] & 1) | (hit[1] & 2) | (hit[2] & 4) | (hit[3] & 8);
  }
  static inline Doubles zero_doubles() { return Doubles{}; }
  static inline Doubles load_doubles(const double* p) { return load<Doubles>(p); }
  static inline void store_doubles(double* p, Doubles x) { memcpy(p, &x, sizeof x); }
  static inline Doubles widen(const float* p) { return Doubles{p[0], p[1]}; }
  static inline Doubles multiply_add(Doubles x, Doubles y, Doubles z) { return x * y + z; }
};

#include "simd_kernels.inl"

}  // namespace dmic::generic

namespace dmic {
extern const SimdKernels kSimdGeneric = generic::kKernels;
}
