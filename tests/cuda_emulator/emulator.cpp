// The scheduler. Compiled without sanitizers: it speaks to them through fiber.h, and its own bookkeeping is not theirs
// to judge. Nothing here allocates memory on a fiber that another fiber will touch, which ThreadSanitizer would see.
#include "emulator.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_emulator.h"
#include "fiber.h"

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr int64_t kMaxBlocks = (1ll << 31) - 1;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr unsigned char kUnwritten[] = {0xad, 0xde, 0xc0, 0x7f};  // a NaN, or a huge index

struct {
  long schedule = 0;
  int workers = 1;
} settings;

char error_text[1024];
std::mutex error_mutex;
Order fences;

void set_error(const char* format, va_list values) {
  const std::lock_guard<std::mutex> lock(error_mutex);
  vsnprintf(error_text, sizeof error_text, format, values);
}

void thread_main();

enum class State { kReady, kAtBarrier, kInCollective, kExited };

struct Copy {
  void (*copy)(void* to, const void* from);
  void* to;
  const void* from;
  int group;
};

struct Meeting;

struct Thread {
  explicit Thread(unsigned index) : index(index) {}

  unsigned lane() const { return index % warpSize; }
  unsigned bit() const { return 1u << lane(); }

  unsigned index;
  State state = State::kReady;
  int line = 0;                // where it waits
  Meeting* meeting = nullptr;  // whose values it may still read
  std::vector<Copy> copies;    // issued, not done
  int groups = 0;              // of copies, committed
  Fiber fiber{thread_main};
};

// One warp collective. It is in use while it is open or a lane may still read its values, and a lane takes part in one
// at a time, so 32 serve a warp.
struct Meeting {
  bool free() const { return !open && unread == 0; }

  bool open = false;
  unsigned mask = 0, arrived = 0, unread = 0;
  Collective collective = Collective::kShuffle;
  Order* order = nullptr;
  uint64_t values[warpSize];
};

struct Warp {
  // The collective of this mask that still waits for lanes, or a new one.
  Meeting& meeting(unsigned mask) {
    for (Meeting& meeting : meetings)
      if (meeting.open && meeting.mask == mask) return meeting;
    Meeting& next = *std::find_if(meetings, meetings + warpSize, [](const Meeting& m) { return m.free(); });
    next.open = true;
    next.mask = mask;
    next.arrived = 0;
    next.order = &orders[num_orders++ % kOrders];
    return next;
  }

  static constexpr unsigned kOrders = 1024;  // an edge per collective; used again when all have long passed it
  unsigned exited = 0, num_orders = 0;
  Meeting meetings[warpSize];
  Order orders[kOrders];
};

struct Barrier {
  unsigned arrived = 0, generation = 0, trues = 0;
  Vote vote = Vote::kNone;
  int line = 0;
  int results[2] = {0, 0};  // a fast thread is at most one barrier ahead
  Order orders[2];
};

// The threads that can run, in the order in which they became ready.
class ReadyList {
 public:
  void reset(size_t capacity) {
    ring_.assign(capacity, nullptr);
    first_ = count_ = 0;
  }
  void push_back(Thread* thread) { at(count_++) = thread; }
  void push_front(Thread* thread) {
    first_ = (first_ + ring_.size() - 1) % ring_.size();
    ++count_;
    at(0) = thread;
  }
  template <class Random>
  Thread* take(long schedule, Random& random) {
    if (count_ == 0) return nullptr;
    Thread*& chosen = at(schedule == 0 ? 0 : schedule == 1 ? count_ - 1 : random() % count_);
    if (schedule == 0) {
      first_ = (first_ + 1) % ring_.size();
      --count_;
      return chosen;
    }
    Thread* thread = chosen;
    chosen = at(--count_);
    return thread;
  }

 private:
  Thread*& at(size_t position) { return ring_[(first_ + position) % ring_.size()]; }

  std::vector<Thread*> ring_;
  size_t first_ = 0, count_ = 0;
};

// Runs blocks one after the other, on one OS thread at a time.
class Processor {
 public:
  // For a launch, on the OS thread that will run it.
  void prepare(int64_t blocks, unsigned threads, size_t shared_bytes, void (*thread)(const void*),
               const void* arguments) {
    gridDim = {static_cast<unsigned>(blocks), 1, 1};
    blockDim = {threads, 1, 1};
    blockIdx = threadIdx = {0, 0, 0};
    host_.adopt_thread();
    thread_ = thread;
    arguments_ = arguments;
    size_ = threads;
    failed_ = false;
    schedule_ = settings.schedule;
    random_.seed(static_cast<unsigned long>(schedule_));
    shared_bytes_ = shared_bytes;
    shared_.reset(new unsigned char[shared_bytes]);  // exactly this long, so that AddressSanitizer knows its end
    while (threads_.size() < threads) threads_.push_back(std::make_unique<Thread>(threads_.size()));
    while (warps_.size() * warpSize < threads) warps_.push_back(std::make_unique<Warp>());
    ready_.reset(threads);
  }

  // False if the block failed.
  bool run_block(int64_t block) {
    blockIdx.x = static_cast<unsigned>(block);
    exited_ = 0;
    for (size_t i = 0; i < shared_bytes_; ++i) shared_[i] = kUnwritten[i % sizeof kUnwritten];
    for (size_t w = 0; w < warps_.size(); ++w) warps_[w]->exited = 0;
    if (size_ % warpSize) warps_[size_ / warpSize]->exited = ~0u << size_ % warpSize;
    for (unsigned i = 0; i < size_; ++i) {
      threads_[i]->copies.clear();
      threads_[i]->groups = 0;
      wake(*threads_[i]);
    }
    current_ = ready_.take(schedule_, random_);
    threadIdx.x = current_->index;
    begin_.release();
    host_.switch_to(current_->fiber);
    if (failed_) {
      for (auto& thread : threads_) thread->fiber.release_abandoned(end_);
      end_.acquire();
      threads_.clear();
      warps_.clear();
      barrier_ = {};
      return false;
    }
    end_.acquire();  // blocks of one worker are in order, those of two are not
    return true;
  }

  void run_thread() {
    begin_.acquire();
    thread_(arguments_);
    end_.release();
    exit_thread();
    give_way();
  }

  int wait_at_barrier(Vote vote, bool predicate, int line) {
    Thread& self = *current_;
    Barrier& b = barrier_;
    if (exited_)
      fail("line %d: thread %u reached the barrier after %u threads have exited", line, self.index, exited_);
    if (b.arrived == 0) {
      b.vote = vote;
      b.line = line;
      b.trues = 0;
    } else if (b.line != line || b.vote != vote) {
      fail("barrier divergence: thread %u at line %d, others at line %d", self.index, line, b.line);
    }
    const unsigned round = b.generation % 2;
    b.trues += predicate;
    b.orders[round].release();
    self.state = State::kAtBarrier;
    self.line = line;
    if (++b.arrived == size_) {
      b.results[round] = vote == Vote::kCount ? b.trues : vote == Vote::kAll ? b.trues == size_ : b.trues > 0;
      b.arrived = 0;
      ++b.generation;
      for (unsigned i = 0; i < size_; ++i) wake(*threads_[i]);
    }
    give_way();
    b.orders[round].acquire();
    return b.results[round];
  }

  Lanes exchange(unsigned mask, uint64_t bits, Collective collective, int line) {
    Thread& self = *current_;
    if (!(mask & self.bit())) fail("line %d: lane %u is not in its own mask %08x", line, self.lane(), mask);
    leave_meeting(self);
    Meeting& meeting = warp(self).meeting(mask);
    if (meeting.arrived == 0) meeting.collective = collective;
    if (meeting.collective != collective)
      fail("line %d: lanes of one mask are in different warp collectives", line);
    meeting.values[self.lane()] = bits;
    meeting.arrived |= self.bit();
    meeting.unread |= self.bit();
    self.meeting = &meeting;
    self.state = State::kInCollective;
    self.line = line;
    if (collective == Collective::kSyncWarp) meeting.order->release();  // the others order no memory
    complete(meeting, self);
    give_way();
    if (collective == Collective::kSyncWarp) meeting.order->acquire();
    return {meeting.values, meeting.arrived, line};
  }

  void yield() {
    Thread& self = *current_;
    if (schedule_ == 1) ready_.push_front(&self);  // behind the others, where the last one is taken
    else ready_.push_back(&self);
    give_way();
  }

  void preempt() {
    constexpr unsigned kOneIn = 8;
    if (schedule_ >= 2 && random_() % kOneIn == 0) yield();
  }

  void copy_async(const Copy& copy) {
    if (schedule_ == 1 || (schedule_ >= 2 && random_() % 2)) copy.copy(copy.to, copy.from);
    else current_->copies.push_back({copy.copy, copy.to, copy.from, current_->groups});
  }

  void commit_copies() { ++current_->groups; }

  void wait_for_copies(int groups_left) {
    std::vector<Copy>& copies = current_->copies;
    const int last = current_->groups - groups_left;
    for (const Copy& c : copies)
      if (c.group < last) c.copy(c.to, c.from);
    copies.erase(std::remove_if(copies.begin(), copies.end(), [&](const Copy& c) { return c.group < last; }),
                 copies.end());
  }

  // Ends the launch; the block's threads are abandoned where they stand.
  [[noreturn]] void abandon() {
    failed_ = true;
    current_->fiber.switch_to(host_);
    abort();  // an abandoned thread never runs again
  }

  Thread& current() { return *current_; }
  void* shared() { return shared_.get(); }

 private:
  Warp& warp(const Thread& thread) { return *warps_[thread.index / warpSize]; }

  void wake(Thread& thread) {
    thread.state = State::kReady;
    ready_.push_back(&thread);
  }

  // Lets the next thread run, or the host once all have exited; returns when this thread is chosen again.
  void give_way() {
    Thread& self = *current_;
    Thread* next = ready_.take(schedule_, random_);
    if (next == &self) return;
    if (!next && exited_ < size_) fail_deadlock();
    if (!next) return self.fiber.switch_to(host_);
    current_ = next;
    threadIdx.x = next->index;
    self.fiber.switch_to(next->fiber);
  }

  // Wakes the lanes of a collective once all of its mask are here or have exited.
  void complete(Meeting& meeting, const Thread& member) {
    if (((meeting.arrived | warp(member).exited) & meeting.mask) != meeting.mask) return;
    meeting.open = false;
    const unsigned first = member.index - member.lane();
    for (unsigned lane = 0; lane < warpSize; ++lane)
      if (meeting.arrived >> lane & 1) wake(*threads_[first + lane]);
  }

  void leave_meeting(Thread& thread) {
    if (thread.meeting) thread.meeting->unread &= ~thread.bit();
    thread.meeting = nullptr;
  }

  void exit_thread() {
    Thread& self = *current_;
    if (barrier_.arrived)
      fail("thread %u exited while others wait at the barrier of line %d", self.index, barrier_.line);
    self.state = State::kExited;
    ++exited_;
    leave_meeting(self);
    warp(self).exited |= self.bit();
    for (Meeting& meeting : warp(self).meetings)
      if (meeting.open) complete(meeting, self);
  }

  [[noreturn]] void fail_deadlock() {
    constexpr int kShown = 8;
    char waiting[800] = "";
    size_t length = 0;
    int shown = 0;
    for (unsigned i = 0; i < size_ && shown < kShown; ++i) {
      const Thread& t = *threads_[i];
      if (t.state == State::kExited) continue;
      length += static_cast<size_t>(
          snprintf(waiting + length, sizeof waiting - length, "; thread %u at the %s of line %d", t.index,
                   t.state == State::kAtBarrier ? "barrier" : "warp collective", t.line));
      ++shown;
    }
    fail("deadlock in block %u, %u of %u threads have exited%s", blockIdx.x, exited_, size_, waiting);
  }

  void (*thread_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::unique_ptr<Warp>> warps_;
  Barrier barrier_;
  ReadyList ready_;
  Fiber host_;
  Thread* current_ = nullptr;
  unsigned size_ = 0, exited_ = 0;
  bool failed_ = false;
  long schedule_ = 0;
  std::mt19937 random_;
  std::unique_ptr<unsigned char[]> shared_;
  size_t shared_bytes_ = 0;
  Order begin_, end_;  // of a block
};

std::vector<std::unique_ptr<Processor>> processors;  // one per worker, kept for the next launch
std::mutex launch_mutex;
thread_local Processor* processor = nullptr;
thread_local const void* current_stream = nullptr;

void thread_main() {
  Processor& mine = *processor;  // the next launch may be on another OS thread
  mine.current().fiber.arrived();
  for (;;) mine.run_thread();
}

// The blocks of a grid in the order of the schedule.
std::vector<int64_t> block_order(int64_t blocks) {
  std::vector<int64_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (settings.schedule == 1) std::reverse(order.begin(), order.end());
  std::mt19937_64 random(static_cast<uint64_t>(settings.schedule));
  if (settings.schedule >= 2) std::shuffle(order.begin(), order.end(), random);
  return order;
}

}  // namespace

void configure(long schedule, int workers) {
  settings.schedule = schedule;
  settings.workers = workers;
}

const char* run_grid(int64_t blocks, int threads, size_t shared_bytes, const void* stream,
                     void (*thread)(const void*), const void* arguments) {
  if (blocks < 1 || blocks > kMaxBlocks || threads < 1 || threads > static_cast<int>(kMaxThreads) ||
      shared_bytes > kMaxSharedBytes) {
    snprintf(error_text, sizeof error_text, "invalid configuration: %lld blocks of %d threads with %zu shared bytes",
             static_cast<long long>(blocks), threads, shared_bytes);
    return error_text;
  }
  if (stream != current_stream) return "launched on a stream that is not the current one";
  const std::lock_guard<std::mutex> lock(launch_mutex);
  const int64_t workers = under_address_sanitizer() ? 1 : std::clamp<int64_t>(settings.workers, 1, blocks);
  while (static_cast<int64_t>(processors.size()) < workers) processors.push_back(std::make_unique<Processor>());
  const std::vector<int64_t> order = block_order(blocks);
  std::atomic<bool> failed{false};
  const auto work = [&](int64_t worker) {
    processor = processors[worker].get();
    processor->prepare(blocks, static_cast<unsigned>(threads), shared_bytes, thread, arguments);
    for (int64_t i = worker; i < blocks && !failed; i += workers)  // dealt out, so that every worker has its share
      if (!processor->run_block(order[i])) failed = true;
  };
  std::vector<std::thread> pool;
  for (int64_t worker = 1; worker < workers; ++worker) pool.emplace_back(work, worker);
  work(0);
  for (std::thread& os_thread : pool) os_thread.join();
  return failed ? error_text : nullptr;
}

uint64_t Lanes::read(int lane) const {
  if (!has(lane)) fail("line %d: warp read from lane %d, which takes no part", line_, lane);
  return values_[lane];
}

Lanes exchange_bits(unsigned mask, uint64_t bits, Collective collective, int line) {
  return processor->exchange(mask, bits, collective, line);
}
int barrier(Vote vote, bool predicate, int line) { return processor->wait_at_barrier(vote, predicate, line); }
int lane() { return static_cast<int>(processor->current().lane()); }
void fence() {
  fences.acquire();
  fences.release();
}
void preempt() { processor->preempt(); }
void yield() { processor->yield(); }
void* dynamic_shared() { return processor->shared(); }
void copy_async(void (*copy)(void*, const void*), void* to, const void* from) {
  processor->copy_async({copy, to, from, 0});
}
void commit_copies() { processor->commit_copies(); }
void wait_for_copies(int groups_left) { processor->wait_for_copies(groups_left); }

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  set_error(format, values);
  va_end(values);
  processor->abandon();
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void dmic_emulator_configure(long schedule, int workers) {
  emulator::configure(schedule, workers);
}

extern "C" __attribute__((visibility("default"))) void* dmic_emulator_set_stream(void* stream) {
  return const_cast<void*>(std::exchange(emulator::current_stream, stream));
}
