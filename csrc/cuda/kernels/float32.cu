// The kernels of float, and those of no element type.
#include "cuda/kernels/stack_kernels.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_T float
#define FRNN_T_IS_16_BIT 0
#include "cuda/kernels/stack.inc"
#include "cuda/kernels/stack_untyped.inc"

}  // namespace fastrnn::cuda
