// A flow of control on a stack of its own, and what AddressSanitizer and ThreadSanitizer must be told of each switch.
// For emulator.cpp only, which is compiled without sanitizers and finds their run times, if any, through weak symbols.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#define DMIC_EMU_UCONTEXT  // portable, and slower: two system calls a switch
#endif
#ifdef DMIC_EMU_UCONTEXT
#include <ucontext.h>
#endif

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* address, size_t size);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* address);
[[gnu::weak]] void __tsan_release(void* address);
}

#ifndef DMIC_EMU_UCONTEXT
// Saves the callee-saved registers on the stack and its pointer in *save, and takes up `resume`, saved likewise.
extern "C" void dmic_switch_stack(void** save, void* resume);
asm(R"(
.text
.globl dmic_switch_stack
.hidden dmic_switch_stack
.type dmic_switch_stack, @function
dmic_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dmic_switch_stack, .-dmic_switch_stack
)");
#endif

namespace emulator {

inline bool under_address_sanitizer() { return __asan_unpoison_memory_region != nullptr; }

// An edge of ThreadSanitizer's happens-before order: what was done before release is seen after acquire.
struct Order {
  void release() {
    if (__tsan_release) __tsan_release(this);
  }
  void acquire() {
    if (__tsan_acquire) __tsan_acquire(this);
  }
  char address = 0;
};

class Fiber {
 public:
  // An OS thread's own flow of control.
  Fiber() = default;

  // A new one. `entry` calls arrived() first, and never returns.
  explicit Fiber(void (*entry)()) : size_(kStackBytes) {
    void* mapped = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    mprotect(mapped, kGuardBytes, PROT_NONE);
    mapped_ = static_cast<char*>(mapped);
    bottom_ = mapped_ + kGuardBytes;
    if (__tsan_create_fiber) sanitizer_fiber_ = __tsan_create_fiber(0);
#ifdef DMIC_EMU_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = mapped_ + kGuardBytes;
    context_.uc_stack.ss_size = kStackBytes;
    makecontext(&context_, entry, 0);
#else
    void** top = reinterpret_cast<void**>(mapped_ + kGuardBytes + kStackBytes);
    *--top = nullptr;  // where entry would return to
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    stack_pointer_ = top;
#endif
  }

  ~Fiber() {
    if (!mapped_) return;
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(sanitizer_fiber_);
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom_, size_);  // the next owner starts clean
    munmap(mapped_, kGuardBytes + kStackBytes);
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes this the flow of control of the calling OS thread.
  void adopt_thread() {
    if (__tsan_get_current_fiber) sanitizer_fiber_ = __tsan_get_current_fiber();
  }

  // Suspends this fiber, which must be the running one, and runs `to`; returns when a fiber switches back, which may be
  // on another OS thread.
  void switch_to(Fiber& to) {
    to.previous_ = this;
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.sanitizer_fiber_, kUnordered);
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#ifdef DMIC_EMU_UCONTEXT
    swapcontext(&context_, &to.context_);
#else
    dmic_switch_stack(&stack_pointer_, to.stack_pointer_);
#endif
    arrived();
  }

  // Completes the switch to this fiber. Also learns the bounds of an OS thread's own stack, when it is left.
  void arrived() {
    if (__sanitizer_finish_switch_fiber)
      __sanitizer_finish_switch_fiber(fake_stack_, &previous_->bottom_, &previous_->size_);
  }

  // For a fiber that will never run again: makes what it did happen before what `order` is acquired by.
  void release_abandoned(Order& order) {
    if (!__tsan_switch_to_fiber) return;
    void* self = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(sanitizer_fiber_, kUnordered);
    order.release();
    __tsan_switch_to_fiber(self, kUnordered);
  }

 private:
  static constexpr size_t kStackBytes = 256 * 1024;
  static constexpr size_t kGuardBytes = 64 * 1024;  // a multiple of every page size: overflow is a segmentation fault
  static constexpr unsigned kUnordered = 1;         // a switch is no synchronisation

  char* mapped_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  Fiber* previous_ = nullptr;  // which switched to this one
  void* fake_stack_ = nullptr;
  void* sanitizer_fiber_ = nullptr;
#ifdef DMIC_EMU_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace emulator
