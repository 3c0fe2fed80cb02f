#include "emulator/emulated_context.h"

namespace fastrnn::cuda::emulated {

void EmulatedContext::out_of_bounds(const EmulatedContext& x, int i, int count, int size, const char* call,
                                    Site site) {
  const std::string range =
      count > 1 ? std::to_string(i) + " to " + std::to_string(i + count - 1) : std::to_string(i);
  throw KernelError("out of bounds: " + x.thread_.name() + " asks in " + call + " at " + site.text() +
                    " for element " + range + " of a view of " + std::to_string(size));
}

void EmulatedContext::misaligned(int offset, int alignment, const char* call, Site site) {
  throw KernelError("misaligned: " + std::string(call) + " at " + site.text() + " is given " +
                    std::to_string(offset) + "; expected a multiple of " + std::to_string(alignment));
}

void EmulatedContext::out_of_range(int value, int most, const char* call, Site site) {
  throw KernelError("out of range: " + std::string(call) + " at " + site.text() + " is given " +
                    std::to_string(value) + "; expected 0 to " + std::to_string(most));
}

}  // namespace fastrnn::cuda::emulated
