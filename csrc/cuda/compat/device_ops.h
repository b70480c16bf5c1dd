// Instructions without a C++ spelling, one wrapper each. Their emulation is tests/cuda_emulator/device_ops_emulated.h.
#pragma once

#include "cuda_compat.h"

#ifdef DMIC_EMU
#include "device_ops_emulated.h"
#else

namespace dmic {

// A word that other threads change with atomics.
template <class T>
__device__ __forceinline__ T load_relaxed(const T* address) {
  return *static_cast<const volatile T*>(address);
}

// Starts a copy of 16 bytes from global to shared memory, zeros if not `valid`; both addresses are multiples of 16.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all but the kGroupsLeft latest groups of this thread.
template <int kGroupsLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Four 8 x 8 matrices of float16 from shared memory: lanes 8 m .. 8 m + 7 give the addresses of the rows of matrix m, 16
// bytes each; part m of every lane is row lane / 4 of matrix m at columns 2 (lane % 4) and the next.
__device__ __forceinline__ void load_matrices_x4(uint32_t (&parts)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared_row)))
               : "memory");
}

// sums [16, 8] += a [16, 16] b [16, 8] of one warp: float16 pairs in, float32 sums, fragments as in the PTX manual's
// m16n8k16. With g = lane / 4 and t = lane % 4: a holds rows g, g + 8, g, g + 8 at columns 2 t, 2 t, 2 t + 8, 2 t + 8;
// b holds column g at rows 2 t and 2 t + 8; sums hold rows g, g, g + 8, g + 8 at columns 2 t, 2 t + 1, 2 t, 2 t + 1.
__device__ __forceinline__ void multiply_tile_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace dmic

#endif
