// Kernels with one mistake each, and the same kernels without it: `bugs NAME|all bug|right SCHEDULE WORKERS` prints the
// emulator's report, if there is one, and the result; without arguments, the names. test_emulator.py says who must find
// which.
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../csrc/cuda/compat/device_ops.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 64;
constexpr int kWarp = 32;

// ---- out of bounds ------------------------------------------------------------------------------------------------

__global__ void global_bounds(const float* in, float* out, bool bug) {
  const int i = static_cast<int>(threadIdx.x) + (bug ? 1 : 0);
  out[threadIdx.x] = in[i];
}

__global__ void static_shared_bounds(const float* in, float* out, bool bug) {
  __shared__ float values[kThreads];
  values[threadIdx.x + (bug ? 1 : 0)] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void dynamic_shared_bounds(const float* in, float* out, bool bug) {
  float* values = dmic::dynamic_shared<float>();
  values[threadIdx.x + (bug ? 1 : 0)] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void unwritten_shared(const float* in, float* out, bool bug) {
  float* values = dmic::dynamic_shared<float>();
  if (!bug || threadIdx.x % 2) values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void misaligned_vector(const float* in, float* out, bool bug) {
  if (threadIdx.x == 0) *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(in + (bug ? 1 : 0));
}

__global__ void signed_overflow(const float*, float* out, bool bug) {
  const int large = INT_MAX - kThreads;
  out[threadIdx.x] = static_cast<float>(large + static_cast<int>(threadIdx.x) * (bug ? 2 : 1));
}

// ---- missing barriers ---------------------------------------------------------------------------------------------

__global__ void missing_barrier(const float* in, float* out, bool bug) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  if (!bug) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % kThreads];
}

// The second barrier of a loop over tiles: a fast thread overwrites what a slow one still reads.
__global__ void missing_second_barrier(const float* in, float* out, bool bug) {
  __shared__ float values[kThreads];
  float sum = 0;
  for (int step = 0; step < 3; ++step) {
    values[threadIdx.x] = in[threadIdx.x] + static_cast<float>(step);
    __syncthreads();
    for (int i = 0; i < kThreads; ++i) sum += values[(threadIdx.x + i) % kThreads] * static_cast<float>(i);
    if (!bug) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// A shuffle orders no memory.
__global__ void missing_syncwarp(const float* in, float* out, bool bug) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  const float other = __shfl_xor_sync(kAll, in[threadIdx.x], 1);
  if (!bug) __syncwarp();
  out[threadIdx.x] = other + values[threadIdx.x ^ 2];
}

__global__ void lost_update(const float* in, float* out, bool bug) {
  if (bug) out[0] = out[0] + in[threadIdx.x];
  else atomicAdd(out, in[threadIdx.x]);
}

__global__ void race_between_blocks(const float* in, float* out, bool bug) {
  if (threadIdx.x) return;
  if (bug) out[0] = out[0] + in[blockIdx.x];
  else atomicAdd(out, in[blockIdx.x]);
}

// The last block reads what the others wrote before they counted themselves.
__global__ void missing_fence(const float* in, float* out, bool bug) {
  if (threadIdx.x) return;
  out[blockIdx.x] = in[blockIdx.x];
  if (!bug) __threadfence();
  unsigned* done = reinterpret_cast<unsigned*>(out + kThreads - 1);
  if (atomicAdd(done, 1u) != gridDim.x - 1) return;
  if (!bug) __threadfence();
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += out[block];
  out[kThreads - 2] = sum;
}

__global__ void missing_copy_wait(const float* in, float* out, bool bug) {
  __shared__ __align__(16) float values[kThreads * 4];
  dmic::copy_async16(&values[threadIdx.x * 4], &in[threadIdx.x / 4 * 4]);
  dmic::commit_copies();
  if (!bug) dmic::wait_for_copies<0>();
  out[threadIdx.x] = values[threadIdx.x * 4];
}

// The latest group may still be on its way.
__global__ void wait_for_too_few_copies(const float* in, float* out, bool bug) {
  __shared__ __align__(16) float values[2][kThreads * 4];
  for (int group = 0; group < 2; ++group) {
    dmic::copy_async16(&values[group][threadIdx.x * 4], &in[group * 4]);
    dmic::commit_copies();
  }
  if (bug) dmic::wait_for_copies<1>();
  else dmic::wait_for_copies<0>();
  out[threadIdx.x] = values[0][threadIdx.x * 4] + values[1][threadIdx.x * 4];
}

// Each thread waits for its own copies only.
__global__ void missing_barrier_after_copies(const float* in, float* out, bool bug) {
  __shared__ __align__(16) float values[kThreads];
  if (threadIdx.x < kThreads / 4) dmic::copy_async16(&values[threadIdx.x * 4], &in[threadIdx.x * 4]);
  dmic::commit_copies();
  dmic::wait_for_copies<0>();
  if (!bug) __syncthreads();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// ---- undefined collectives ----------------------------------------------------------------------------------------

__global__ void divergent_barrier(const float* in, float* out, bool bug) {
  volatile float mine[] = {in[threadIdx.x], 0, 0};  // on the stack, whose end AddressSanitizer guards
  if (bug && threadIdx.x % 2) {
    out[threadIdx.x] = mine[0];
    __syncthreads();
  } else {
    __syncthreads();
    out[threadIdx.x] = mine[threadIdx.x % 2] + mine[2 - threadIdx.x % 2];
  }
}

__global__ void exit_before_barrier(const float* in, float* out, bool bug) {
  if (bug && threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void read_from_exited_lane(const float* in, float* out, bool bug) {
  if (bug && threadIdx.x % kWarp == 20) return;
  out[threadIdx.x] = __shfl_down_sync(kAll, in[threadIdx.x], 1);
}

__global__ void outside_own_mask(const float* in, float* out, bool bug) {
  const unsigned mask = bug ? 0x0000ffffu : kAll;
  out[threadIdx.x] = __shfl_xor_sync(mask, in[threadIdx.x], 1);
}

__global__ void mixed_collectives(const float* in, float* out, bool bug) {
  if (bug && threadIdx.x % 2) out[threadIdx.x] = __any_sync(kAll, in[threadIdx.x] > 0) ? 1.0f : 0.0f;
  else out[threadIdx.x] = __shfl_xor_sync(kAll, in[threadIdx.x], 1);
}

__global__ void deadlock(const float* in, float* out, bool bug) {
  if (bug && threadIdx.x % kWarp >= 16) __syncthreads();
  else out[threadIdx.x] = __shfl_xor_sync(kAll, in[threadIdx.x], 1);
}

__global__ void misaligned_copy(const float* in, float* out, bool bug) {
  __shared__ __align__(16) float values[4];
  if (threadIdx.x == 0) {
    dmic::copy_async16(values, in + (bug ? 1 : 0));
    dmic::commit_copies();
    dmic::wait_for_copies<0>();
    out[0] = values[0];
  }
}

struct Scenario {
  const char* name;
  void (*kernel)(const float*, float*, bool);
  int blocks;
  size_t shared_bytes;
};

constexpr size_t kBytes = kThreads * sizeof(float);
const Scenario kScenarios[] = {
    {"global_bounds", global_bounds, 1, 0},
    {"static_shared_bounds", static_shared_bounds, 1, 0},
    {"dynamic_shared_bounds", dynamic_shared_bounds, 1, kBytes},
    {"unwritten_shared", unwritten_shared, 1, kBytes},
    {"misaligned_vector", misaligned_vector, 1, 0},
    {"signed_overflow", signed_overflow, 1, 0},
    {"missing_barrier", missing_barrier, 1, 0},
    {"missing_second_barrier", missing_second_barrier, 1, 0},
    {"missing_syncwarp", missing_syncwarp, 1, 0},
    {"lost_update", lost_update, 1, 0},
    {"race_between_blocks", race_between_blocks, 8, 0},
    {"missing_fence", missing_fence, 8, 0},
    {"missing_copy_wait", missing_copy_wait, 1, 0},
    {"wait_for_too_few_copies", wait_for_too_few_copies, 1, 0},
    {"missing_barrier_after_copies", missing_barrier_after_copies, 1, 0},
    {"divergent_barrier", divergent_barrier, 1, 0},
    {"exit_before_barrier", exit_before_barrier, 1, 0},
    {"read_from_exited_lane", read_from_exited_lane, 1, 0},
    {"outside_own_mask", outside_own_mask, 1, 0},
    {"mixed_collectives", mixed_collectives, 1, 0},
    {"deadlock", deadlock, 1, 0},
    {"misaligned_copy", misaligned_copy, 1, 0},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    for (const Scenario& scenario : kScenarios) puts(scenario.name);
    return 0;
  }
  const std::string name = argv[1];
  const bool bug = std::string(argv[2]) == "bug";
  emulator::configure(atol(argv[3]), atoi(argv[4]));
  for (const Scenario& scenario : kScenarios) {
    if (name != scenario.name && name != "all") continue;
    std::vector<float> in(kThreads), out(kThreads);
    for (int i = 0; i < kThreads; ++i) in[i] = static_cast<float>(i + 1);
    const auto launch = [&](bool with_bug) {
      return dmic::launch(scenario.kernel, scenario.blocks, kThreads, scenario.shared_bytes, nullptr, in.data(),
                          out.data(), with_bug);
    };
    if (const char* error = launch(bug)) {
      printf("%s failed: %s\n", scenario.name, error);
      std::fill(out.begin(), out.end(), 0.0f);
      if (const char* again = launch(false)) printf("%s cannot run again: %s\n", scenario.name, again);
    }
    printf("%s:", scenario.name);
    for (const float value : out) printf(" %g", static_cast<double>(value));
    puts("");
  }
  return 0;
}
