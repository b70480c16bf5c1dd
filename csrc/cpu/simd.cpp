// Chooses the instruction set once, at first use.
#include "simd.h"

#include <atomic>
#include <cstring>
#include <vector>

namespace dmic {

extern const SimdKernels kSimdGeneric;
#if defined(__x86_64__)
extern const SimdKernels kSimdAvx2, kSimdAvx512;
#if DMIC_AMX
extern const SimdKernels kSimdVnni, kSimdAmx;
bool amx_available();
#endif
#endif

namespace {

struct Level {
  const SimdKernels* kernels;
  bool (*available)();
};

#if defined(__x86_64__)
bool avx512_available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif

const Level kLevels[] = {
    {&kSimdGeneric, [] { return true; }},
#if defined(__x86_64__)
    {&kSimdAvx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
    {&kSimdAvx512, avx512_available},
#if DMIC_AMX
    {&kSimdVnni, [] { return avx512_available() && __builtin_cpu_supports("avx512vnni"); }},
    {&kSimdAmx, [] { return avx512_available() && amx_available(); }},
#endif
#endif
};

const SimdKernels* choose() {
  const SimdKernels* best = nullptr;
  for (const Level& level : kLevels)
    if (level.available()) best = level.kernels;
  return best;
}

std::atomic<const SimdKernels*> chosen{nullptr};

}  // namespace

const SimdKernels& simd() {
  const SimdKernels* kernels = chosen.load(std::memory_order_acquire);
  if (!kernels) chosen.store(kernels = choose(), std::memory_order_release);
  return *kernels;
}

const char* const* simd_levels() {
  static const std::vector<const char*> names = [] {
    std::vector<const char*> all;
    for (const Level& level : kLevels) all.push_back(level.kernels->name);
    all.push_back(nullptr);
    return all;
  }();
  return names.data();
}

bool simd_level_available(const char* name) {
  for (const Level& level : kLevels)
    if (!std::strcmp(level.kernels->name, name)) return level.available();
  return false;
}

bool set_simd_level(const char* name) {
  if (!name) {
    chosen.store(choose(), std::memory_order_release);
    return true;
  }
  for (const Level& level : kLevels)
    if (!std::strcmp(level.kernels->name, name) && level.available()) {
      chosen.store(level.kernels, std::memory_order_release);
      return true;
    }
  return false;
}

}  // namespace dmic
