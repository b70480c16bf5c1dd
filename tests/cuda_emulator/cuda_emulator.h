// The CUDA language and run time on the CPU, as far as kernels use them; see README.md. Included by cuda_compat.h in
// place of cuda_runtime.h when DMIC_EMU is defined.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#ifdef __SANITIZE_ADDRESS__  // it guards the ends of plain statics only; blocks then run on one OS thread
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define EMULATOR_LINE int line = __builtin_LINE()  // last argument of what can wait: the caller's line

// ---- built-in types and variables ---------------------------------------------------------------------------------

namespace emulator {
template <class T>
struct alignas(2 * sizeof(T)) Vector2 {
  T x, y;
};
template <class T>
struct Vector3 {
  T x, y, z;
};
template <class T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Vector4 {
  T x, y, z, w;
};
}  // namespace emulator

using int2 = emulator::Vector2<int>;
using int4 = emulator::Vector4<int>;
using uint3 = emulator::Vector3<unsigned>;
using uint4 = emulator::Vector4<unsigned>;
using float2 = emulator::Vector2<float>;
using float4 = emulator::Vector4<float>;
using double2 = emulator::Vector2<double>;
using dim3 = uint3;  // grids and blocks have one axis

extern __thread uint3 threadIdx, blockIdx;  // thread_local would add a check for a constructor to each use
extern __thread dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- barriers, fences, warp collectives ---------------------------------------------------------------------------

inline void __syncthreads(EMULATOR_LINE) { emulator::barrier(emulator::Vote::kNone, false, line); }
inline int __syncthreads_count(int predicate, EMULATOR_LINE) {
  return emulator::barrier(emulator::Vote::kCount, predicate != 0, line);
}
inline int __syncthreads_and(int predicate, EMULATOR_LINE) {
  return emulator::barrier(emulator::Vote::kAll, predicate != 0, line);
}
inline int __syncthreads_or(int predicate, EMULATOR_LINE) {
  return emulator::barrier(emulator::Vote::kAny, predicate != 0, line);
}
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_LINE) {
  emulator::exchange(mask, 0, emulator::Collective::kSyncWarp, line);
}
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }
inline void __nanosleep(unsigned) { emulator::yield(); }
inline unsigned __activemask() { return 1u << emulator::lane(); }  // always a legal answer, and the least helpful one

namespace emulator {
struct Segment {  // of a warp, `width` lanes long, around the calling lane
  explicit Segment(int width) : lane(emulator::lane()), first(lane & ~(width - 1)), last(first + width - 1) {}
  int lane, first, last;
};
template <class T>
T shuffle(unsigned mask, T value, int source, int line) {
  return exchange(mask, value, Collective::kShuffle, line).template get<T>(source);
}
template <class T, class Combine>
T reduce(unsigned mask, T value, int line, Combine combine) {
  const Lanes lanes = exchange(mask, value, Collective::kReduce, line);
  T result = value;
  for (int other = 0; other < warpSize; ++other)
    if (lanes.has(other) && other != lane()) result = combine(result, lanes.get<T>(other));
  return result;
}
}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATOR_LINE) {
  return emulator::shuffle(mask, value, emulator::Segment(width).first + (source & (width - 1)), line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_LINE) {
  const emulator::Segment s(width);
  const int source = s.lane - static_cast<int>(delta);
  return emulator::shuffle(mask, value, source < s.first ? s.lane : source, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_LINE) {
  const emulator::Segment s(width);
  const int source = s.lane + static_cast<int>(delta);
  return emulator::shuffle(mask, value, source > s.last ? s.lane : source, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, EMULATOR_LINE) {
  const emulator::Segment s(width);
  const int source = s.lane ^ lane_mask;
  return emulator::shuffle(mask, value, source > s.last ? s.lane : source, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_LINE) {
  const emulator::Lanes lanes = emulator::exchange(mask, predicate, emulator::Collective::kVote, line);
  unsigned result = 0;
  for (int other = 0; other < warpSize; ++other)
    if (lanes.has(other) && lanes.get<int>(other)) result |= 1u << other;
  return result;
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_LINE) { return __ballot_sync(mask, predicate, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMULATOR_LINE) {
  return __ballot_sync(mask, !predicate, line) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_LINE) {
  const emulator::Lanes lanes = emulator::exchange(mask, value, emulator::Collective::kMatch, line);
  unsigned result = 0;
  for (int other = 0; other < warpSize; ++other)
    if (lanes.has(other) && lanes.get<T>(other) == value) result |= 1u << other;
  return result;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, EMULATOR_LINE) {
  return emulator::reduce(mask, value, line, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, EMULATOR_LINE) {
  return emulator::reduce(mask, value, line, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, EMULATOR_LINE) {
  return emulator::reduce(mask, value, line, [](T a, T b) { return a < b ? b : a; });
}
template <class T>
T __reduce_or_sync(unsigned mask, T value, EMULATOR_LINE) {
  return emulator::reduce(mask, value, line, [](T a, T b) { return a | b; });
}

// ---- atomics: relaxed, as on the device ---------------------------------------------------------------------------

namespace emulator {
template <class T>
T load_relaxed(const T* address) {
  T value;
  __atomic_load(address, &value, __ATOMIC_RELAXED);
  return value;
}
template <class T>
bool compare_exchange(T* address, T& expected, T desired) {
  return __atomic_compare_exchange(address, &expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
template <class T, class Update>
T update(T* address, Update next) {
  preempt();
  T value = load_relaxed(address);
  while (!compare_exchange(address, value, static_cast<T>(next(value)))) {
  }
  return value;
}
template <class T>
using Same = std::common_type_t<T>;  // T, not deduced
}  // namespace emulator

template <class T>
T atomicCAS(T* address, emulator::Same<T> expected, emulator::Same<T> desired) {
  emulator::preempt();
  emulator::compare_exchange(address, expected, desired);
  return expected;
}
template <class T>
T atomicExch(T* address, emulator::Same<T> value) {
  return emulator::update(address, [=](T) { return value; });
}
template <class T>
T atomicAdd(T* address, emulator::Same<T> value) {
  return emulator::update(address, [=](T old) { return old + value; });
}
template <class T>
T atomicSub(T* address, emulator::Same<T> value) {
  return emulator::update(address, [=](T old) { return old - value; });
}
template <class T>
T atomicMin(T* address, emulator::Same<T> value) {
  return emulator::update(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, emulator::Same<T> value) {
  return emulator::update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicAnd(T* address, emulator::Same<T> value) {
  return emulator::update(address, [=](T old) { return old & value; });
}
template <class T>
T atomicOr(T* address, emulator::Same<T> value) {
  return emulator::update(address, [=](T old) { return old | value; });
}

// ---- scalar intrinsics --------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

// ---- host API -----------------------------------------------------------------------------------------------------

using cudaStream_t = void*;

namespace emulator {
// What <<<>>> does, and waits for it. `call` calls the kernel with its arguments.
template <class Call>
const char* run(int64_t blocks, int threads, size_t shared_bytes, const void* stream, const Call& call) {
  const auto thread = [](const void* erased) { (*static_cast<const Call*>(erased))(); };
  return run_grid(blocks, threads, shared_bytes, stream, thread, &call);
}
}  // namespace emulator
