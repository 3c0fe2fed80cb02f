// The kernels of a stack, all element types, for the emulator.
#include "cuda/kernels/stack_kernels.h"

#include "emulator/launch_emulated.h"

namespace fastrnn::cuda {

#define FRNN_KERNEL(...) template void launch<__VA_ARGS__>(Stream, const Grid&, const __VA_ARGS__::Params&);
#define FRNN_T_NARROW 0
#define FRNN_T float
#include "cuda/kernels/stack.inc"
#undef FRNN_T
#define FRNN_T double
#include "cuda/kernels/stack.inc"
#undef FRNN_T
#undef FRNN_T_NARROW
#define FRNN_T_NARROW 1
#define FRNN_T half_t
#include "cuda/kernels/stack.inc"
#undef FRNN_T
#define FRNN_T bfloat16_t
#include "cuda/kernels/stack.inc"
FRNN_KERNEL(BeginDropout)
FRNN_KERNEL(SplitFloat)
FRNN_KERNEL(SortTokens)
FRNN_KERNEL(TokenStarts)

}  // namespace fastrnn::cuda
