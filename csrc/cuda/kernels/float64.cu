// The kernels of double.
#include "cuda/kernels/stack_kernels.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_KERNEL(...) template void launch<__VA_ARGS__>(Stream, const Grid&, const __VA_ARGS__::Params&);
#define FRNN_T double
#define FRNN_T_NARROW 0
#include "cuda/kernels/stack.inc"

}  // namespace fastrnn::cuda
