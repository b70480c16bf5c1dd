// The one header that kernel sources include for the CUDA language and for launching. With nvcc it is CUDA; with
// DMIC_EMU defined it is tests/cuda_emulator, and the same source runs on the CPU. Kernels cannot tell which.
#pragma once

#ifdef DMIC_EMU
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <utility>

namespace dmic {

// Launches on a stream. Returns nullptr, or why the launch failed; the caller returns early on empty input.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
#ifdef DMIC_EMU
  return emulator::run(blocks, threads, shared_bytes, stream, [&] { kernel(static_cast<Parameters>(arguments)...); });
#else
  constexpr int64_t kMaxBlocks = (1ll << 31) - 1;
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  if (blocks > kMaxBlocks) return cudaGetErrorString(cudaErrorInvalidConfiguration);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kDefaultSharedBytes)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error == cudaSuccess)
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, stream>>>(
        static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  error = cudaGetLastError();  // of either call, and taken back, so that the next launch is not blamed for it
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#endif
}

// Multiprocessors of the current device: kernels whose blocks keep scratch memory of their own launch a few for each.
inline int64_t num_multiprocessors() {
#ifdef DMIC_EMU
  return 2;
#else
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
#endif
}

// Shared memory that a block of the current device can have: 227 KB on an H100, 163 on an A100, 99 on most others.
inline size_t max_shared_bytes() {
#ifdef DMIC_EMU
  return 227 * 1024;
#else
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes > 0 ? static_cast<size_t>(bytes) : 0;
#endif
}

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef DMIC_EMU
  return static_cast<T*>(emulator::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char dmic_dynamic_shared[];
  return reinterpret_cast<T*>(dmic_dynamic_shared);
#endif
}

}  // namespace dmic
