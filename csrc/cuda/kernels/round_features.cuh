// C interface of the kernel: raw pointers, sizes, stream; CUDA types erased so that the torch side needs no toolkit.
#pragma once

#include <cstdint>

// bad_row [1] int64 on the device: preset to `rows`; receives the first row that leaves float16.
// Returns nullptr, or why the launch failed.
extern "C" const char* dmic_launch_round_features(const float* features, int64_t rows, int64_t d, double power,
                                                  uint16_t* rounded, float* residual_norm, unsigned long long* bad_row,
                                                  void* stream);
