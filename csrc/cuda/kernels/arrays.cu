#include "cuda/kernels/arrays.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_KERNEL(...) template void launch<__VA_ARGS__>(Stream, const Grid&, const __VA_ARGS__::Params&);
#include "cuda/kernels/arrays.inc"

}  // namespace fastrnn::cuda
