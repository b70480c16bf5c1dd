// What csrc/cuda/compat/device_ops.h does on the device.
#pragma once

#include <array>

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
  constexpr int kDepth = 16, kLanesOfRow = 4;
  const int group = emulator::lane() / kLanesOfRow, first_col = emulator::lane() % kLanesOfRow * 2;
  // A lane keeps only what its own four sums read: rows group and group + 8 of a, columns first_col and the next of b.
  float left[2][kDepth], right[2][kDepth];
  const auto read = [](const emulator::Lanes& lanes, int row, float* values) {
    for (int t = 0; t < kLanesOfRow; ++t) {
      const auto pairs = lanes.get<std::array<uint32_t, 2>>(row * kLanesOfRow + t);
      for (int k = 0; k < 2; ++k) {
        values[8 * k + 2 * t] = float_from_half(static_cast<uint16_t>(pairs[k]));
        values[8 * k + 2 * t + 1] = float_from_half(static_cast<uint16_t>(pairs[k] >> 16));
      }
    }
  };
  const auto exchange = [](uint32_t of_first_columns, uint32_t of_last_columns) {
    const std::array<uint32_t, 2> pairs{of_first_columns, of_last_columns};
    return emulator::exchange(~0u, pairs, emulator::Collective::kMatrix, __LINE__);
  };
  read(exchange(a[0], a[2]), group, left[0]);
  read(exchange(a[1], a[3]), group, left[1]);
  const emulator::Lanes columns = exchange(b[0], b[1]);
  for (int c = 0; c < 2; ++c) read(columns, first_col + c, right[c]);
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < kDepth; ++k) sums[i] += left[i / 2][k] * right[i % 2][k];
}

}  // namespace dmic
