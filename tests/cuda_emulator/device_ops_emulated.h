// What csrc/cuda/compat/device_ops.h does on the device.
#pragma once

#include "../../csrc/canonical/half.h"
#include "cuda_emulator.h"

namespace dmic {

template <class T>
T load_relaxed(const T* address) {
  return emulator::load_relaxed(address);
}

inline void copy_async16(void* shared, const void* global, bool valid = true) {
  constexpr uintptr_t kBytes = 16;
  if (reinterpret_cast<uintptr_t>(shared) % kBytes || reinterpret_cast<uintptr_t>(global) % kBytes)
    emulator::fail("copy_async16: misaligned address");
  const auto copy = [](void* to, const void* from) { *static_cast<float4*>(to) = *static_cast<const float4*>(from); };
  const auto clear = [](void* to, const void*) { *static_cast<float4*>(to) = float4{}; };
  if (valid) emulator::copy_async(copy, shared, global);
  else emulator::copy_async(clear, shared, global);
}

inline void commit_copies() { emulator::commit_copies(); }

template <int kGroupsLeft>
void wait_for_copies() {
  emulator::wait_for_copies(kGroupsLeft);
}

inline void load_matrices_x4(uint32_t (&parts)[4], const void* shared_row) {
  constexpr uintptr_t kBytes = 16;
  if (reinterpret_cast<uintptr_t>(shared_row) % kBytes) emulator::fail("load_matrices_x4: misaligned address");
  const auto rows = emulator::exchange(~0u, shared_row, emulator::Collective::kMatrix, __LINE__);
  const int lane = emulator::lane();
  for (int m = 0; m < 4; ++m) parts[m] = rows.get<const uint32_t*>(8 * m + lane / 4)[lane % 4];
}

inline void multiply_tile_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int kRows = 16, kCols = 8, kDepth = 16;
  float left[kRows][kDepth], right[kDepth][kCols];
  const auto low = [](uint32_t pair) { return float_from_half(static_cast<uint16_t>(pair)); };
  const auto high = [](uint32_t pair) { return float_from_half(static_cast<uint16_t>(pair >> 16)); };
  for (int part = 0; part < 4; ++part) {
    const auto lanes = emulator::exchange(~0u, a[part], emulator::Collective::kMatrix, __LINE__);
    for (int lane = 0; lane < warpSize; ++lane) {
      float* pair = &left[lane / 4 + part % 2 * 8][lane % 4 * 2 + part / 2 * 8];
      pair[0] = low(lanes.get<uint32_t>(lane));
      pair[1] = high(lanes.get<uint32_t>(lane));
    }
  }
  for (int part = 0; part < 2; ++part) {
    const auto lanes = emulator::exchange(~0u, b[part], emulator::Collective::kMatrix, __LINE__);
    for (int lane = 0; lane < warpSize; ++lane) {
      const int row = lane % 4 * 2 + part * 8;
      right[row][lane / 4] = low(lanes.get<uint32_t>(lane));
      right[row + 1][lane / 4] = high(lanes.get<uint32_t>(lane));
    }
  }
  const int row = emulator::lane() / 4, col = emulator::lane() % 4 * 2;
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < kDepth; ++k) sums[i] += left[row + i / 2 * 8][k] * right[k][col + i % 2];
}

}  // namespace dmic
