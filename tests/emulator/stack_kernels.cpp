// The kernels of a stack, all element types, for the emulator.
#include "cuda/kernels/stack_kernels.h"

#include "emulator/launch_emulated.h"

namespace fastrnn::cuda {

#define FRNN_T_IS_16_BIT 0
#define FRNN_T float
#include "cuda/kernels/stack.inc"
#undef FRNN_T
#define FRNN_T double
#include "cuda/kernels/stack.inc"
#undef FRNN_T
#undef FRNN_T_IS_16_BIT
#define FRNN_T_IS_16_BIT 1
#define FRNN_T half_t
#include "cuda/kernels/stack.inc"
#undef FRNN_T
#define FRNN_T bfloat16_t
#include "cuda/kernels/stack.inc"
#include "cuda/kernels/stack_untyped.inc"

}  // namespace fastrnn::cuda
