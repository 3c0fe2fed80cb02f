// The kernels of double.
#include "cuda/kernels/stack_kernels.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_T double
#define FRNN_T_IS_16_BIT 0
#include "cuda/kernels/stack.inc"

}  // namespace fastrnn::cuda
