// The kernels of float, and those of no element type.
#include "cuda/kernels/stack_kernels.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_KERNEL(...) template void launch<__VA_ARGS__>(Stream, const Grid&, const __VA_ARGS__::Params&);
#define FRNN_T float
#define FRNN_T_NARROW 0
#include "cuda/kernels/stack.inc"
FRNN_KERNEL(BeginDropout)
FRNN_KERNEL(SplitFloat)
FRNN_KERNEL(SortTokens)
FRNN_KERNEL(TokenStarts)

}  // namespace fastrnn::cuda
