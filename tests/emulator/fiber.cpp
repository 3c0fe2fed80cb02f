#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <new>
#include <vector>

#include "emulator/thread_sanitizer.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastrnn::cuda::emulated {
namespace {

// Virtual memory; only what a kernel touches becomes real.
constexpr std::size_t kStackBytes = 256 * 1024;

// Stacks are kept for the next fiber, since mapping one costs more than running a short kernel on it; but not
// with ThreadSanitizer, to which the next fiber's accesses would seem to race with the last one's.
class Stacks {
 public:
  void* take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      void* stack = free_.back();
      free_.pop_back();
      return stack;
    }
    void* memory = mmap(nullptr, kStackBytes + page_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page_, PROT_NONE);  // an overflow stops here
    return static_cast<char*>(memory) + page_;
  }
  void give_back(void* stack) {
    if (kThreadSanitizer) {
      munmap(static_cast<char*>(stack) - page_, kStackBytes + page_);
      return;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(stack);
  }

 private:
  std::mutex mutex_;
  std::vector<void*> free_;
  const std::size_t page_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
};

Stacks& stacks() {
  static auto* const all = new Stacks;  // never destroyed: others may still run at exit
  return *all;
}

// makecontext hands over no pointer, so this does.
thread_local Fiber* starting = nullptr;
#ifdef __SANITIZE_ADDRESS__
thread_local Fiber* leaving = nullptr;
#endif

// The compiler's own setjmp and longjmp, which are a few instructions. A meeting of threads takes a quarter
// of the time that it does with swapcontext, which asks the operating system for the signal mask; and with
// AddressSanitizer swapcontext clears what it knows of both stacks, and longjmp asks for the signal stack.
// Functions of their own, since a longjmp may not stand beside its setjmp; unchecked, since AddressSanitizer
// would clear the stack's shadow before a call that does not return.
#define FRNN_UNCHECKED __attribute__((noinline, no_sanitize("address")))
#ifndef __SANITIZE_THREAD__
void** as_words(jmp_buf& registers) { return reinterpret_cast<void**>(&registers); }
[[noreturn]] FRNN_UNCHECKED void go_on(jmp_buf& registers) { __builtin_longjmp(as_words(registers), 1); }
#endif

}  // namespace

Fiber::Fiber() : started_(true) {
#ifdef __SANITIZE_THREAD__
  sanitizer_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*entry)(void*), void* argument)
    : entry_(entry), argument_(argument), stack_(stacks().take()), stack_bytes_(kStackBytes) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::start, 0);
#ifdef __SANITIZE_THREAD__
  sanitizer_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (!entry_) return;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_destroy_fiber(sanitizer_);
#endif
  stacks().give_back(stack_);
}

FRNN_UNWATCHED void Fiber::start() {
  Fiber* const self = starting;
  self->arrived();
  self->entry_(self->argument_);
}

FRNN_UNWATCHED FRNN_UNCHECKED void Fiber::switch_to(Fiber& to) {
  starting = &to;
#ifdef __SANITIZE_ADDRESS__
  leaving = this;
  __sanitizer_start_switch_fiber(&sanitizer_, to.stack_, to.stack_bytes_);
#endif
#ifdef __SANITIZE_THREAD__
  // Without the order that a switch would otherwise mean: only barriers order fibers.
  __tsan_switch_to_fiber(to.sanitizer_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_THREAD__
  swapcontext(&context_, &to.context_);
#else
  if (__builtin_setjmp(as_words(registers_)) == 0) {
    if (to.started_) go_on(to.registers_);
    to.started_ = true;
    setcontext(&to.context_);
  }
#endif
  arrived();
}

// On this fiber's stack, coming from another.
void Fiber::arrived() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(sanitizer_, &bottom, &bytes);
  if (!leaving->entry_) {  // now it is known where the caller's own stack lies
    leaving->stack_ = const_cast<void*>(bottom);
    leaving->stack_bytes_ = bytes;
  }
#endif
}

}  // namespace fastrnn::cuda::emulated
