// Dynamic scheduling of chunks over torch's threads, with polling: progress and interrupts reach the caller from
// the calling thread only, between chunks, about every 50 ms.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dmic {

// Called with the stage and the work done so far; returns true to stop. Installed by python_module.cpp.
using PollFunction = bool (*)(const char* stage, int64_t done, int64_t total);
inline std::atomic<PollFunction> poll_function{nullptr};

struct Interrupted : std::runtime_error {
  explicit Interrupted(const char* stage) : std::runtime_error(std::string(stage) + ": interrupted") {}
};

// Denormals as IEEE has them while this lives: torch.set_flush_denormal changes the calling thread alone, and results
// would depend on which thread computes a row.
class KeepDenormals {
 public:
#if defined(__x86_64__)
  KeepDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }  // FTZ and DAZ
  ~KeepDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  KeepDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ & ~(1ull << 24)));
  }
  ~KeepDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// Progress of one stage. `add` may be called from any thread; `poll` acts on the calling thread only.
class Progress {
 public:
  Progress(const char* stage, int64_t total) : stage_(stage), total_(total) { report(); }

  void add(int64_t work) { done_.fetch_add(work, std::memory_order_relaxed); }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  void stop() { stopped_.store(true, std::memory_order_relaxed); }

  void poll() {
    if (stopped() || std::this_thread::get_id() != owner_) return;
    const auto now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return;
    last_ = now;
    report();
  }

  // The exception that a stop asks for: before partial results are put to use.
  void check() const {
    if (stopped()) throw Interrupted(stage_);
  }

  // At the end of the stage: a last report, and the same.
  void finish() {
    if (!stopped()) report();
    check();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void report() {
    const PollFunction poll = poll_function.load(std::memory_order_acquire);
    if (poll && poll(stage_, std::min(done_.load(std::memory_order_relaxed), total_), total_)) stop();
  }

  const KeepDenormals keep_denormals_;
  const char* stage_;
  int64_t total_;
  std::atomic<int64_t> done_{0};
  std::atomic<bool> stopped_{false};
  const std::thread::id owner_ = std::this_thread::get_id();
  Clock::time_point last_ = Clock::now();
};

inline int num_workers(int64_t items) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), items)));
}

struct NoState {};

// Calls body(item, state) for every item in [0, items), each once, handed out in ascending order; every worker makes a
// state of its own when it gets its first item. Stops early when the progress is stopped. If items throw, the exception
// of the lowest one is rethrown here, whatever the number of threads.
template <class MakeState, class Body>
void for_each_item(Progress& progress, int64_t items, const MakeState& make_state, const Body& body) {
  if (items <= 0) return;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  int64_t error_item = items;
  std::mutex error_mutex;
  const auto work = [&](int64_t first, int64_t last) {
    const KeepDenormals keep_denormals;
    for (int64_t worker = first; worker < last; ++worker) {
      std::optional<std::invoke_result_t<MakeState>> state;
      for (int64_t item; !progress.stopped() && !failed && (item = next.fetch_add(1)) < items;) {
        try {
          if (!state) state.emplace(make_state());
          body(item, *state);
          progress.poll();
        } catch (...) {
          const std::lock_guard<std::mutex> lock(error_mutex);
          failed = true;
          if (item >= error_item) continue;
          error_item = item;
          error = std::current_exception();
        }
      }
    }
  };
  torch::stable::parallel_for(0, num_workers(items), 1, work);
  if (error) std::rethrow_exception(error);
}

// The same over rows: body(begin, end, state) for chunks of at most `chunk` rows.
template <class MakeState, class Body>
void for_each_chunk(Progress& progress, int64_t rows, int64_t chunk, const MakeState& make_state, const Body& body) {
  for_each_item(progress, (rows + chunk - 1) / chunk, make_state, [&](int64_t item, auto& state) {
    body(item * chunk, std::min(rows, (item + 1) * chunk), state);
  });
}

template <class Body>
void for_each_chunk(Progress& progress, int64_t rows, int64_t chunk, const Body& body) {
  for_each_chunk(progress, rows, chunk, [] { return NoState{}; },
                 [&](int64_t begin, int64_t end, NoState&) { body(begin, end); });
}

}  // namespace dmic
