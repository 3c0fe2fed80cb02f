// What tests may ask of, and tell, the emulated runtime.
#pragma once

#include <cstddef>

#include "cuda/limits.h"

namespace fastrnn::cuda::emulated {

inline constexpr int kDevices = 2;

void set_limits(const Limits& limits);  // of every device
std::size_t live_bytes();               // allocated and not released

// Whether these bytes lie within one allocation, and on the current device.
bool holds(const void* memory, std::size_t bytes);

}  // namespace fastrnn::cuda::emulated
