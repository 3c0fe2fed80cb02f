// The kernels of half_t.
#include "cuda/kernels/stack_kernels.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_T half_t
#define FRNN_T_IS_16_BIT 1
#include "cuda/kernels/stack.inc"

}  // namespace fastrnn::cuda
