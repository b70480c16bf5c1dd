// The emulator's core: runs a grid of CUDA threads on the CPU. Each CUDA thread is a fiber; a block runs on one OS
// thread, one fiber at a time, in an order that the schedule chooses.
//
// What a kernel does wrong where the hardware would do something undefined (a barrier that not every thread reaches, a
// lane outside its own mask, a shuffle from a lane that takes no part, threads that wait for each other) fails the
// launch with a sentence that names threads and source lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace emulator {

// ---- called by the tests ------------------------------------------------------------------------------------------

// schedule: 0 runs threads and blocks in order, a thread until it waits; 1 in reverse, the thread that was woken last
// first; 2 and up are seeds of random orders that also change threads at atomics and yields.
// workers: OS threads that run blocks at the same time (always 1 under AddressSanitizer).
void configure(long schedule, int workers);

// Calls thread(arguments) once for every CUDA thread. Returns nullptr, or what went wrong: also a stream that is not the
// current one of the calling thread, which is null until dmic_emulator_set_stream.
const char* run_grid(int64_t blocks, int threads, size_t shared_bytes, const void* stream,
                     void (*thread)(const void*), const void* arguments);

// ---- called by the emulated language, on a fiber ------------------------------------------------------------------

enum class Vote { kNone, kCount, kAll, kAny };
enum class Collective { kShuffle, kVote, kMatch, kReduce, kSyncWarp, kMatrix };

// The values that the lanes of a warp collective brought; valid until this lane's next collective.
class Lanes {
 public:
  Lanes(const uint64_t* values, unsigned mask, int line) : values_(values), mask_(mask), line_(line) {}

  bool has(int lane) const { return mask_ >> lane & 1; }

  template <class T>
  T get(int lane) const {
    const uint64_t bits = read(lane);
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  uint64_t read(int lane) const;  // not inline: the storage is hidden from ThreadSanitizer

  const uint64_t* values_;
  unsigned mask_;
  int line_;
};

Lanes exchange_bits(unsigned mask, uint64_t bits, Collective collective, int line);

// Waits until every lane of the mask that has not exited is here, in the same kind of collective.
template <class T>
Lanes exchange(unsigned mask, T value, Collective collective, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane brings at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return exchange_bits(mask, bits, collective, line);
}

int barrier(Vote vote, bool predicate, int line);
int lane();
void fence();
void preempt();  // under random schedules, lets another thread run now and then
void yield();    // lets another thread run, if one can
void* dynamic_shared();
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// An asynchronous copy happens now or at the last legal moment, the wait for its group: schedule 1 now, 0 then, others
// by chance. `copy` is a function of the kernel's translation unit, so that sanitizers see its accesses.
void copy_async(void (*copy)(void* to, const void* from), void* to, const void* from);
void commit_copies();
void wait_for_copies(int groups_left);

}  // namespace emulator
