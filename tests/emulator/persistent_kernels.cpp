// The persistent kernels, all element types, for the emulator.
#include "cuda/kernels/persistent_backward.h"
#include "cuda/kernels/persistent_forward.h"
#include "emulator/launch_emulated.h"

namespace fastrnn::cuda {

#define FRNN_T float
#include "cuda/kernels/persistent.inc"
#undef FRNN_T
#define FRNN_T half_t
#include "cuda/kernels/persistent.inc"
#undef FRNN_T
#define FRNN_T bfloat16_t
#include "cuda/kernels/persistent.inc"

}  // namespace fastrnn::cuda
