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
#include <stdexcept>
#include <thread>

namespace dmic {

// Called with the stage and the work done so far; returns true to stop. Installed by python_module.cpp.
using PollFunction = bool (*)(const char* stage, int64_t done, int64_t total);
inline std::atomic<PollFunction> poll_function{nullptr};

struct Interrupted : std::runtime_error {
  explicit Interrupted(const char* stage) : std::runtime_error(std::string(stage) + ": interrupted") {}
};

// Progress of one stage. `add` may be called from any thread; `poll` acts on the calling thread only.
class Progress {
 public:
  Progress(const char* stage, int64_t total) : stage_(stage), total_(total) { report(); }

  void add(int64_t work) { done_.fetch_add(work, std::memory_order_relaxed); }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  void stop() { stopped_.store(true, std::memory_order_relaxed); }

  void poll() {
    if (std::this_thread::get_id() != owner_) return;
    const auto now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return;
    last_ = now;
    report();
  }

  // At the end of the stage: a last report, and the exception that a stop asks for.
  void finish() {
    if (!stopped()) report();
    if (stopped()) throw Interrupted(stage_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  void report() {
    const PollFunction poll = poll_function.load(std::memory_order_acquire);
    if (poll && poll(stage_, std::min(done_.load(std::memory_order_relaxed), total_), total_)) stop();
  }

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

// Calls body(item, worker) for every item in [0, items), each once, in no fixed order; worker < num_workers(items).
// Stops early when the progress is stopped; the first exception of a worker is rethrown here.
template <class Body>
void for_each_item(Progress& progress, int64_t items, const Body& body) {
  if (items <= 0) return;
  const int workers = num_workers(items);
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      try {
        for (int64_t item; !progress.stopped() && (item = next.fetch_add(1)) < items;) {
          body(item, static_cast<int>(worker));
          progress.poll();
        }
      } catch (...) {
        const std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        progress.stop();
      }
    }
  };
  torch::stable::parallel_for(0, workers, 1, work);
  if (error) std::rethrow_exception(error);
}

// The same over rows: body(begin, end, worker) for chunks of at most `chunk` rows; adds the rows to the progress.
template <class Body>
void for_each_chunk(Progress& progress, int64_t rows, int64_t chunk, const Body& body) {
  for_each_item(progress, (rows + chunk - 1) / chunk, [&](int64_t item, int worker) {
    const int64_t begin = item * chunk, end = std::min(rows, begin + chunk);
    body(begin, end, worker);
    progress.add(end - begin);
  });
}

}  // namespace dmic
