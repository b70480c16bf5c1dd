// What the primitives that kernels use must do. Built for the emulator, where it takes a schedule and a number of
// workers, and by nvcc for a GPU: the hardware is held to the same claims. Exits with 77, "skipped", without a GPU.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/canonical/half.h"
#include "../../csrc/cuda/compat/device_ops.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarp = 32;
#ifdef __SANITIZE_THREAD__  // which takes a millisecond to make a fiber
constexpr int kLargestBlock = 256;
#else
constexpr int kLargestBlock = 1024;
#endif
int failures = 0;

void expect(bool holds, const char* claim, long long got = 0, long long want = 0) {
  if (holds) return;
  ++failures;
  printf("FAILED: %s (got %lld, want %lld)\n", claim, got, want);
}

void expect_equal(long long got, long long want, const char* claim) { expect(got == want, claim, got, want); }

#ifdef DMIC_EMU
bool prepare(int argc, char** argv) {
  emulator::configure(argc > 1 ? atol(argv[1]) : 0, argc > 2 ? atoi(argv[2]) : 1);
  return true;
}
void* allocate(size_t bytes) { return malloc(bytes); }
void release(void* memory) { free(memory); }
void finish() {}
#else
bool prepare(int, char**) {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}
void* allocate(size_t bytes) {
  void* memory = nullptr;
  expect(cudaMallocManaged(&memory, bytes) == cudaSuccess, "memory is allocated");
  return memory;
}
void release(void* memory) { cudaFree(memory); }
void finish() { expect(cudaDeviceSynchronize() == cudaSuccess, "the kernel ran"); }
#endif

template <class T>
class Array {  // that host and device read and write
 public:
  explicit Array(size_t size, T value = T()) : data_(static_cast<T*>(allocate(size * sizeof(T)))), size_(size) {
    for (size_t i = 0; i < size; ++i) data_[i] = value;
  }
  ~Array() { release(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* get() { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }

 private:
  T* data_;
  size_t size_;
};

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, Arguments... arguments) {
  const char* error = dmic::launch(kernel, blocks, threads, shared_bytes, nullptr, arguments...);
  expect(!error, error ? error : "");
  finish();
}

// ---- warp collectives ---------------------------------------------------------------------------------------------

__global__ void shuffle_kernel(int* out, int width) {
  const int lane = threadIdx.x % kWarp;
  int* mine = out + threadIdx.x * 4;
  mine[0] = __shfl_sync(kAll, lane * 10, 5, width);
  mine[1] = __shfl_up_sync(kAll, lane, 3, width);
  mine[2] = __shfl_down_sync(kAll, lane, 3, width);
  mine[3] = __shfl_xor_sync(kAll, lane, 9, width);
}

void shuffles_stay_in_their_segment() {
  for (const int width : {32, 16, 8}) {
    constexpr int kThreads = 64;
    Array<int> out(kThreads * 4);
    run(shuffle_kernel, 1, kThreads, 0, out.get(), width);
    for (int t = 0; t < kThreads; ++t) {
      const int lane = t % kWarp, first = lane / width * width, last = first + width - 1;
      expect_equal(out[t * 4], (first + 5 % width) * 10, "shfl reads the lane of the segment");
      expect_equal(out[t * 4 + 1], lane - 3 < first ? lane : lane - 3, "shfl_up keeps its own value at the start");
      expect_equal(out[t * 4 + 2], lane + 3 > last ? lane : lane + 3, "shfl_down keeps its own value at the end");
      expect_equal(out[t * 4 + 3], (lane ^ 9) > last ? lane : lane ^ 9, "shfl_xor reads no later segment");
    }
  }
}

__global__ void shuffle_wide_kernel(double* out) {
  const double value = 1.0 / (1 + threadIdx.x);
  out[threadIdx.x] = __shfl_xor_sync(kAll, value, 1);
}

void shuffles_carry_eight_bytes() {
  Array<double> out(kWarp);
  run(shuffle_wide_kernel, 1, kWarp, 0, out.get());
  for (int lane = 0; lane < kWarp; ++lane) expect(out[lane] == 1.0 / (1 + (lane ^ 1)), "a shuffle moves a double");
}

__global__ void vote_kernel(unsigned* out) {
  const int lane = threadIdx.x;
  unsigned* mine = out + lane * 9;
  mine[0] = __ballot_sync(kAll, lane % 3 == 0);
  mine[1] = __any_sync(kAll, lane == 7);
  mine[2] = __any_sync(kAll, lane == 77);
  mine[3] = __all_sync(kAll, lane < kWarp);
  mine[4] = __all_sync(kAll, lane != 7);
  mine[5] = __match_any_sync(kAll, lane / 5);
  mine[6] = __reduce_add_sync(kAll, static_cast<unsigned>(lane));
  mine[7] = __reduce_min_sync(kAll, static_cast<unsigned>(lane + 2)) * 100 +
            __reduce_max_sync(kAll, static_cast<unsigned>(lane + 2));
  mine[8] = __reduce_or_sync(kAll, 1u << lane % 4);
}

void votes_and_reductions_see_every_lane() {
  Array<unsigned> out(kWarp * 9);
  run(vote_kernel, 1, kWarp, 0, out.get());
  for (int lane = 0; lane < kWarp; ++lane) {
    const unsigned* mine = &out[lane * 9];
    unsigned same = 0;
    for (int other = 0; other < kWarp; ++other) same |= (other / 5 == lane / 5 ? 1u : 0u) << other;
    const unsigned want[] = {0x49249249u, 1, 0, 1, 0, same, 496, 2 * 100 + 33, 15};
    for (int i = 0; i < 9; ++i) expect_equal(mine[i], want[i], "votes, match and reductions");
  }
}

// The halves of a warp are in different collectives at the same time.
__global__ void half_warps_kernel(int* out) {
  const int lane = threadIdx.x;
  const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int value = lane;
  if (lane < 16) {
    for (int step = 8; step > 0; step /= 2) value += __shfl_xor_sync(mask, value, step);
  } else {
    for (int step = 0; step < 3; ++step) value = __shfl_down_sync(mask, value, 1, 16);
  }
  __syncwarp();
  out[lane] = value;
}

void half_warps_go_their_own_way() {
  Array<int> out(kWarp);
  run(half_warps_kernel, 1, kWarp, 0, out.get());
  for (int lane = 0; lane < kWarp; ++lane)
    expect_equal(out[lane], lane < 16 ? 120 : lane < 29 ? lane + 3 : 31, "collectives with disjoint masks");
}

// Every subset of four groups of eight lanes in turn: more masks than lanes, and lanes that run ahead.
__global__ void many_masks_kernel(int* out) {
  const int group = threadIdx.x / 8;
  int sum = 0;
  for (int subset = 1; subset < 16; ++subset) {
    if (!(subset >> group & 1)) continue;
    unsigned mask = 0;
    for (int g = 0; g < 4; ++g) mask |= (subset >> g & 1 ? 0xffu : 0u) << g * 8;
    for (int repeat = 0; repeat < 5; ++repeat) sum += __popc(__ballot_sync(mask, 1));
  }
  out[threadIdx.x] = sum;
}

void a_warp_may_use_any_number_of_masks() {
  Array<int> out(kWarp);
  run(many_masks_kernel, 1, kWarp, 0, out.get());
  for (const int sum : out) expect_equal(sum, 8 * 5 * (1 + 3 * 2 + 3 * 3 + 4), "subsets of a warp");
}

__global__ void partial_warp_kernel(int* out) { out[threadIdx.x] = __popc(__ballot_sync(kAll, 1)); }

void lanes_that_do_not_exist_are_not_waited_for() {
  Array<int> out(40);
  run(partial_warp_kernel, 1, 40, 0, out.get());
  for (int t = 0; t < 40; ++t) expect_equal(out[t], t < kWarp ? kWarp : 8, "the last warp is short");
}

__global__ void exited_lanes_kernel(int* out) {
  if (threadIdx.x % 31 == 0) return;  // the first lane and the last
  out[threadIdx.x] = __popc(__ballot_sync(kAll, 1));
}

void lanes_that_have_exited_are_not_waited_for() {
  Array<int> out(kWarp);
  run(exited_lanes_kernel, 1, kWarp, 0, out.get());
  for (int t = 0; t < kWarp; ++t) expect_equal(out[t], t % 31 == 0 ? 0 : 30, "two lanes have exited");
}

// ---- blocks -------------------------------------------------------------------------------------------------------

__global__ void block_votes_kernel(int* out) {
  const int count = __syncthreads_count(threadIdx.x % 2), all = __syncthreads_and(threadIdx.x < 48),
            any = __syncthreads_or(threadIdx.x == 47), none = __syncthreads_or(threadIdx.x == 48);
  out[threadIdx.x] = count * 1000 + (all != 0) * 100 + (any != 0) * 10 + (none != 0);
}

void block_votes_count_every_thread() {
  Array<int> out(48);
  run(block_votes_kernel, 1, 48, 0, out.get());
  for (const int votes : out) expect_equal(votes, 24110, "syncthreads_count, _and, _or");
}

__global__ void index_kernel(int* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] += blockIdx.x * 1000 + threadIdx.x;
}

void every_thread_of_every_block_runs_once() {
  constexpr int kBlocks = 7;
  for (const int threads : {24, 1, kLargestBlock, 33}) {
    Array<int> out(kBlocks * threads);
    run(index_kernel, kBlocks, threads, 0, out.get());
    for (int i = 0; i < kBlocks * threads; ++i)
      expect_equal(out[i], i / threads * 1000 + i % threads, "block and thread indices");
  }
}

// Inclusive sums of one block, doubling the reach between two barriers.
template <class T>
__global__ void scan_kernel(const T* in, T* out) {
  T* sums = dmic::dynamic_shared<T>();
  const int t = threadIdx.x, size = blockDim.x;
  int now = 0;
  sums[t] = in[t];
  __syncthreads();
  for (int reach = 1; reach < size; reach *= 2, now = 1 - now) {
    const T* from = sums + now * size;
    sums[(1 - now) * size + t] = t >= reach ? from[t] + from[t - reach] : from[t];
    __syncthreads();
  }
  out[t] = sums[now * size + t];
}

void barriers_order_dynamic_shared_memory() {
  for (const int size : {1, 32, 77, kLargestBlock}) {
    Array<double> in(size), out(size);
    for (int i = 0; i < size; ++i) in[i] = i % 7;
    run(scan_kernel<double>, 1, size, 2 * size * sizeof(double), in.get(), out.get());
    double sum = 0;
    for (int i = 0; i < size; ++i) expect(out[i] == (sum += in[i]), "inclusive sums");
  }
}

// Transposes 16 x 16 tiles through static shared memory.
constexpr int kTileSide = 16, kTileSize = kTileSide * kTileSide;
__global__ void transpose_kernel(const float* in, float* out, int tiles) {
  __shared__ float tile[kTileSide][kTileSide + 1];
  const int row = threadIdx.x / kTileSide, col = threadIdx.x % kTileSide;
  for (int i = 0; i < tiles; ++i) {
    tile[row][col] = in[i * kTileSize + threadIdx.x];
    __syncthreads();
    out[i * kTileSize + threadIdx.x] = tile[col][row];
    __syncthreads();
  }
}

void barriers_order_static_shared_memory() {
  constexpr int kTiles = 3;
  Array<float> in(kTiles * kTileSize), out(kTiles * kTileSize);
  for (int i = 0; i < kTiles * kTileSize; ++i) in[i] = static_cast<float>(i);
  run(transpose_kernel, 1, kTileSize, 0, in.get(), out.get(), kTiles);
  for (int i = 0; i < kTiles * kTileSize; ++i) {
    const int tile = i / kTileSize, row = i % kTileSize / kTileSide, col = i % kTileSide;
    expect(out[i] == in[tile * kTileSize + col * kTileSide + row], "transpose");
  }
}

// ---- atomics and fences -------------------------------------------------------------------------------------------

__global__ void atomics_kernel(int* i, unsigned* u, float* f, double* d, unsigned long long* q) {
  const int t = threadIdx.x;
  atomicAdd(&i[0], t);
  atomicMin(&i[1], t - 5);
  atomicMax(&i[2], t);
  atomicSub(&i[3], 1);
  atomicAdd(f, 0.5f);
  atomicAdd(d, 0.25);
  atomicMax(&q[0], static_cast<unsigned long long>(t) << 40);
  atomicMin(&q[1], static_cast<unsigned long long>(t + 3) << 40);
  atomicOr(&u[0], 1u << t % kWarp);
  atomicAnd(&u[1], ~(1u << t % kWarp));
  atomicExch(&u[2], 7u);
  atomicCAS(&u[3], 0u, static_cast<unsigned>(t + 1));
}

void atomics_lose_nothing() {
  Array<int> i(4);
  Array<unsigned> u(4);
  Array<float> f(1);
  Array<double> d(1);
  Array<unsigned long long> q(2);
  u[1] = ~0u;
  q[1] = ~0ull;
  run(atomics_kernel, 1, 64, 0, i.get(), u.get(), f.get(), d.get(), q.get());
  expect_equal(i[0], 2016, "atomicAdd");
  expect_equal(i[1], -5, "atomicMin");
  expect_equal(i[2], 63, "atomicMax");
  expect_equal(i[3], -64, "atomicSub");
  expect(f[0] == 32.0f && d[0] == 16.0, "atomicAdd of floats");
  expect(q[0] == 63ull << 40 && q[1] == 3ull << 40, "64-bit atomicMax and atomicMin");
  expect(u[0] == ~0u && u[1] == 0 && u[2] == 7, "atomicOr, atomicAnd, atomicExch");
  expect(u[3] >= 1 && u[3] <= 64, "atomicCAS stores one thread's value", u[3], 1);
}

// The last block to finish adds up what the others left behind their fence.
__global__ void last_block_kernel(const int* in, int* partial, int* done, int* out) {
  __shared__ int sum;
  __shared__ bool last;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, in[blockIdx.x * blockDim.x + threadIdx.x]);
  __syncthreads();
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(done, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    __threadfence();
    int total = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) total += partial[block];
    *out = total;
  }
}

void fences_order_memory_between_blocks() {
  Array<int> in(8 * 32), partial(8), done(1), out(1);
  for (int i = 0; i < 8 * 32; ++i) in[i] = i;
  run(last_block_kernel, 8, 32, 0, in.get(), partial.get(), done.get(), out.get());
  expect_equal(out[0], 8 * 32 * (8 * 32 - 1) / 2, "the last block sees every other");
}

// A lock, which needs every thread to go on in the end.
__global__ void lock_kernel(int* lock, int* value) {
  for (bool done = false; !done;) {
    if (atomicCAS(lock, 0, 1) == 0) {
      __threadfence();
      *value += 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    } else {
      __nanosleep(10);
    }
  }
}

void locks_admit_one_thread_at_a_time() {
  Array<int> lock(1), value(1);
  run(lock_kernel, 2, 64, 0, lock.get(), value.get());
  expect_equal(value[0], 128, "additions under a lock");
}

// Every thread waits for the one before it.
__global__ void turns_kernel(unsigned* turn, int* order) {
  while (dmic::load_relaxed(turn) != threadIdx.x) __nanosleep(10);
  order[threadIdx.x] = static_cast<int>(threadIdx.x);
  __threadfence();
  atomicAdd(turn, 1u);
}

void waiting_threads_let_the_others_run() {
  Array<unsigned> turn(1);
  Array<int> order(64, -1);
  run(turns_kernel, 1, 64, 0, turn.get(), order.get());
  for (int t = 0; t < 64; ++t) expect_equal(order[t], t, "every thread has its turn");
}

// Union-find, the larger root under the smaller: threads read words that others change.
__device__ int find_root(int* parent, int i) {
  for (int p = dmic::load_relaxed(&parent[i]); p != i;) {
    const int grandparent = dmic::load_relaxed(&parent[p]);
    if (grandparent != p) atomicCAS(&parent[i], p, grandparent);
    i = p;
    p = grandparent;
  }
  return i;
}

__global__ void hook_kernel(const int2* edges, int num_edges, int* parent) {
  const int e = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (e >= num_edges) return;
  for (int a = edges[e].x, b = edges[e].y;;) {
    a = find_root(parent, a);
    b = find_root(parent, b);
    if (a == b) return;
    if (a < b) {
      const int larger = b;
      b = a;
      a = larger;
    }
    if (atomicCAS(&parent[a], a, b) == a) return;
  }
}

void roots_do_not_depend_on_the_schedule() {
  constexpr int kNodes = 150, kEdges = 130;
  Array<int> parent(kNodes);
  Array<int2> edges(kEdges);
  std::vector<int> label(kNodes);
  for (int i = 0; i < kNodes; ++i) label[i] = parent[i] = i;
  for (int e = 0; e < kEdges; ++e) edges[e] = {e * 37 % kNodes, e * 91 % 97};
  run(hook_kernel, 3, 64, 0, edges.get(), kEdges, parent.get());
  for (bool changed = true; changed;) {
    changed = false;
    for (const int2& edge : edges) {
      const int low = label[edge.x] < label[edge.y] ? label[edge.x] : label[edge.y];
      changed |= label[edge.x] != low || label[edge.y] != low;
      label[edge.x] = label[edge.y] = low;
    }
  }
  for (int i = 0; i < kNodes; ++i) {
    int root = i;
    while (parent[root] != root) root = parent[root];
    expect_equal(root, label[i], "a root is the smallest index");
  }
}

// ---- scalar intrinsics, asynchronous copies, matrix products ------------------------------------------------------

__global__ void scalars_kernel(int* out) {
  const int bits = 0x00f0;
  out[0] = __popc(bits), out[1] = __ffs(bits), out[2] = __clz(bits);
  out[3] = __popcll(~0ull), out[4] = __ffsll(1ll << 40), out[5] = __clzll(1ll << 40);
  out[6] = __ffs(0), out[7] = __clz(0), out[8] = __clzll(0), out[9] = __ldg(&out[0]), out[10] = min(3, 2) + max(3, 2);
}

void scalar_intrinsics_count_bits() {
  const int want[] = {4, 5, 24, 64, 41, 23, 0, 32, 64, 4, 5};
  Array<int> out(11);
  run(scalars_kernel, 1, 1, 0, out.get());
  for (int i = 0; i < 11; ++i) expect_equal(out[i], want[i], "popc, ffs, clz, ldg, min and max");
}

constexpr int kTileRows = 16, kTileCols = 8, kTileDepth = 16;

// x [16, d] y [8, d]^T by one warp, the next tiles on their way while these are multiplied.
__global__ void product_kernel(const uint16_t* x, const uint16_t* y, float* out, int d) {
  __shared__ __align__(16) uint16_t xs[2][kTileRows][kTileDepth];
  __shared__ __align__(16) uint16_t ys[2][kTileCols][kTileDepth];
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4, row = lane / 2, half = lane % 2 * 8;
  const auto load = [&](int buffer, int k) {
    dmic::copy_async16(&xs[buffer][row][half], &x[row * d + k + half]);
    if (row < kTileCols) dmic::copy_async16(&ys[buffer][row][half], &y[row * d + k + half]);
    dmic::commit_copies();
  };
  const auto pair = [](const uint16_t* two) { return two[0] | static_cast<uint32_t>(two[1]) << 16; };
  float sums[4] = {0, 0, 0, 0};
  load(0, 0);
  for (int k = 0; k < d; k += kTileDepth) {
    const int now = k / kTileDepth % 2;
    if (k + kTileDepth < d) {
      load(1 - now, k + kTileDepth);
      dmic::wait_for_copies<1>();
    } else {
      dmic::wait_for_copies<0>();
    }
    __syncwarp();
    const uint32_t a[4] = {pair(&xs[now][g][2 * t]), pair(&xs[now][g + 8][2 * t]), pair(&xs[now][g][2 * t + 8]),
                           pair(&xs[now][g + 8][2 * t + 8])};
    const uint32_t b[2] = {pair(&ys[now][g][2 * t]), pair(&ys[now][g][2 * t + 8])};
    dmic::multiply_tile_f16(sums, a, b);
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * kTileCols + 2 * t + i % 2] = sums[i];
}

void tile_products_are_exact_for_small_integers() {
  constexpr int kDepth = 5 * kTileDepth;
  Array<uint16_t> x(kTileRows * kDepth), y(kTileCols * kDepth);
  Array<float> out(kTileRows * kTileCols);
  const auto left = [](int i, int k) { return static_cast<float>((i * 5 + k * 3) % 11 - 5); };
  const auto right = [](int j, int k) { return static_cast<float>((j * 7 + k) % 13 - 6); };
  for (int k = 0; k < kDepth; ++k) {
    for (int i = 0; i < kTileRows; ++i) x[i * kDepth + k] = dmic::half_from_float(left(i, k));
    for (int j = 0; j < kTileCols; ++j) y[j * kDepth + k] = dmic::half_from_float(right(j, k));
  }
  run(product_kernel, 1, kWarp, 0, x.get(), y.get(), out.get(), kDepth);
  for (int i = 0; i < kTileRows; ++i)
    for (int j = 0; j < kTileCols; ++j) {
      float want = 0;
      for (int k = 0; k < kDepth; ++k) want += left(i, k) * right(j, k);
      expect_equal(static_cast<long long>(out[i * kTileCols + j]), static_cast<long long>(want), "x y^T");
    }
}

constexpr int kMatrices = 4, kMatrixRows = 8;

__global__ void matrices_kernel(const uint16_t* in, uint32_t* out) {
  __shared__ __align__(16) uint16_t rows[kMatrices * kMatrixRows][8];
  for (int column = 0; column < 8; ++column) rows[threadIdx.x][column] = in[threadIdx.x * 8 + column];
  __syncwarp();
  uint32_t parts[kMatrices];
  dmic::load_matrices_x4(parts, rows[threadIdx.x ^ 5]);  // the rows of each matrix in another order
  for (int m = 0; m < kMatrices; ++m) out[m * kWarp + threadIdx.x] = parts[m];
}

void matrices_arrive_as_the_product_takes_them() {
  Array<uint16_t> in(kMatrices * kMatrixRows * 8);
  Array<uint32_t> out(kMatrices * kWarp);
  for (int i = 0; i < kMatrices * kMatrixRows * 8; ++i) in[i] = static_cast<uint16_t>(i * 257 + 3);
  run(matrices_kernel, 1, kWarp, 0, in.get(), out.get());
  for (int m = 0; m < kMatrices; ++m)
    for (int lane = 0; lane < kWarp; ++lane) {
      const int row = (kMatrixRows * m + lane / 4) ^ 5, column = lane % 4 * 2;
      const uint32_t want = in[row * 8 + column] | static_cast<uint32_t>(in[row * 8 + column + 1]) << 16;
      expect_equal(out[m * kWarp + lane], want, "part of a matrix");
    }
}

__global__ void copy_kernel(const float4* in, float4* out, int valid) {
  __shared__ float4 values[kWarp];
  dmic::copy_async16(&values[threadIdx.x], &in[threadIdx.x], static_cast<int>(threadIdx.x) < valid);
  dmic::commit_copies();
  dmic::wait_for_copies<0>();
  out[threadIdx.x] = values[threadIdx.x];
}

void copies_that_are_not_valid_give_zeros() {
  Array<float4> in(kWarp, {1, 2, 3, 4}), out(kWarp, {9, 9, 9, 9});
  run(copy_kernel, 1, kWarp, 0, in.get(), out.get(), 20);
  for (int i = 0; i < kWarp; ++i) {
    const float4 want = i < 20 ? float4{1, 2, 3, 4} : float4{0, 0, 0, 0};
    expect(out[i].x == want.x && out[i].y == want.y && out[i].z == want.z && out[i].w == want.w, "copies");
  }
}

void impossible_launches_are_refused() {
  Array<int> out(1);
  expect(dmic::launch(partial_warp_kernel, 0, 32, 0, nullptr, out.get()), "a grid without blocks is refused");
  expect(dmic::launch(partial_warp_kernel, 1, 1025, 0, nullptr, out.get()), "1025 threads are refused");
  expect(dmic::launch(partial_warp_kernel, 1ll << 31, 32, 0, nullptr, out.get()), "2^31 blocks are refused");
  expect(dmic::launch(partial_warp_kernel, 1, 32, 228 * 1024, nullptr, out.get()), "228 KB shared are refused");
#ifdef DMIC_EMU
  expect(dmic::launch(partial_warp_kernel, 1, 32, 0, out.get(), out.get()), "another stream is refused");
#endif
}

}  // namespace

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;
  if (!prepare(argc, argv)) {
    puts("selftest skipped: no GPU here");
    return kSkipped;
  }
  shuffles_stay_in_their_segment();
  shuffles_carry_eight_bytes();
  votes_and_reductions_see_every_lane();
  half_warps_go_their_own_way();
  a_warp_may_use_any_number_of_masks();
  lanes_that_do_not_exist_are_not_waited_for();
  lanes_that_have_exited_are_not_waited_for();
  block_votes_count_every_thread();
  every_thread_of_every_block_runs_once();
  barriers_order_dynamic_shared_memory();
  barriers_order_static_shared_memory();
  atomics_lose_nothing();
  fences_order_memory_between_blocks();
  locks_admit_one_thread_at_a_time();
  waiting_threads_let_the_others_run();
  roots_do_not_depend_on_the_schedule();
  scalar_intrinsics_count_bits();
  tile_products_are_exact_for_small_integers();
  matrices_arrive_as_the_product_takes_them();
  copies_that_are_not_valid_give_zeros();
  impossible_launches_are_refused();
  puts(failures ? "selftest failed" : "selftest passed");
  return failures != 0;
}
