// Starting a kernel, from plain C++.  What launch() does is decided by what is linked: the .cu files
// instantiate it for the GPU (launch_cuda.cuh), the emulator of the tests for the CPU
// (tests/emulator/launch_emulated.h).  Both take the kernels from the lists in kernels/*.inc.
#pragma once

#include "cuda/context.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

// The CTAs of a launch; how many threads each has is the kernel's (kThreads).
struct Grid {
  int blocks = 0;            // 0: nothing happens
  int shared = 0;            // bytes of shared memory of a CTA
  int cluster = 1;           // CTAs of a cluster; divides blocks
  bool cooperative = false;  // all CTAs run at the same time, or the launch is refused
};

// Queues Kernel::run(params, x) on `stream`, a stream of the current device.  Throws Error if the device
// refuses it.
template <class Kernel>
void launch(Stream stream, const Grid& grid, const typename Kernel::Params& params);

// An entry of those lists; variadic, because the arguments of a template have commas.
#define FRNN_KERNEL(...) template void launch<__VA_ARGS__>(Stream, const Grid&, const __VA_ARGS__::Params&);

}  // namespace fastrnn::cuda
