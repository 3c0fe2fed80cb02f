// Fibers: functions with stacks of their own that hand the processor to each other.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

namespace fastrnn::cuda::emulated {

class Fiber {
 public:
  // The stack that the caller is on, to come back to.
  Fiber();
  // Calls entry(argument) when first switched to; entry must not return.  May be destroyed wherever it
  // stands.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From this fiber, which is running, to another; returns when something switches back.
  void switch_to(Fiber& to);

 private:
  static void start();
  void arrived();

  ucontext_t context_ = {};  // to start it
  jmp_buf registers_ = {};   // to go on with it
  bool started_ = false;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* stack_ = nullptr;  // lowest address
  std::size_t stack_bytes_ = 0;
  void* sanitizer_ = nullptr;  // what AddressSanitizer or ThreadSanitizer keeps for it
};

}  // namespace fastrnn::cuda::emulated
