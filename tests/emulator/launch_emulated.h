// launch() for the emulator: include this and instantiate the kernels, as the .cu files do with
// launch_cuda.cuh.
#pragma once

#include <type_traits>

#include "cuda/launch.h"
#include "emulator/emulated_context.h"
#include "emulator/runtime_emulated.h"

namespace fastrnn::cuda {

template <class Kernel>
void launch(Stream stream, const Grid& grid, const typename Kernel::Params& params) {
  using Params = typename Kernel::Params;
  static_assert(std::is_trivially_copyable_v<Params>);
  static_assert(Kernel::kThreads % kWarp == 0);
  const auto run = [](const void* p, emulated::EmulatedContext& x) {
    Kernel::run(*static_cast<const Params*>(p), x);
  };
  emulated::work(stream,
                 [=] { emulated::Machine::launch({Kernel::kName, Kernel::kThreads, run, &params}, grid); });
}

}  // namespace fastrnn::cuda
