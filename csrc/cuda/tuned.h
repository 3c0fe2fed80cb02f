// What was measured on GPUs, with which `plan` decides on such devices. Written by bench/tune.py --table from
// its results; change nothing by hand.
#pragma once

#include <array>

#include "cuda/plan.h"

namespace fastrnn::cuda {

// Nothing has been measured.
constexpr std::array<Tuned, 0> kTuned{};

}  // namespace fastrnn::cuda
