#include "cuda/kernels/arrays.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#include "cuda/kernels/arrays.inc"

}  // namespace fastrnn::cuda
