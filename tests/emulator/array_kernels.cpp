// The kernels for whole arrays, for the emulator.
#include "cuda/kernels/arrays.h"
#include "emulator/launch_emulated.h"

namespace fastrnn::cuda {

#define FRNN_KERNEL(...) template void launch<__VA_ARGS__>(Stream, const Grid&, const __VA_ARGS__::Params&);
#include "cuda/kernels/arrays.inc"

}  // namespace fastrnn::cuda
