// The persistent kernels of float.
#include "cuda/kernels/persistent_backward.h"
#include "cuda/kernels/persistent_forward.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

#define FRNN_T float
#include "cuda/kernels/persistent.inc"

}  // namespace fastrnn::cuda
