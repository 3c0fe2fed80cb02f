// The persistent kernels of bfloat16_t.
#include "cuda/kernels/persistent_backward.h"
#include "cuda/kernels/persistent_forward.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_T bfloat16_t
#include "cuda/kernels/persistent.inc"

}  // namespace fastrnn::cuda
