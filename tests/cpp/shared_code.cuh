// Kernels that do nothing but call what the real ones share, for test_kernels.cpp.
#pragma once

#include <cstdint>

// Sorts keys with one block: where they are, or in shared memory.
const char* launch_block_sort(uint64_t* keys, uint32_t count, int threads, bool in_shared);

// dots [rows, 3]: x [d] times rows i, i + 1 and i + 2 (modulo rows) of features [rows, d], as any lane has them.
const char* launch_warp_dots(const float* x, const float* features, int64_t rows, int64_t d, int lane, double* dots);
