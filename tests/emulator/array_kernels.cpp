// The kernels for whole arrays, for the emulator.
#include "cuda/kernels/arrays.h"
#include "emulator/launch_emulated.h"

namespace fastrnn::cuda {

#include "cuda/kernels/arrays.inc"

}  // namespace fastrnn::cuda
