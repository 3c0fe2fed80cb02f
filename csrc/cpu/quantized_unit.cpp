// The kernels of quantised inference for one instruction set and one type of weights.  The build compiles
// this file once for each pair, with FRNN_ISA and FRNN_WEIGHT (bfloat16, int8) defined and that set's
// compiler flags. It exports one symbol, the table.
#include "cpu/forward_kernels.h"

namespace fastrnn::cpu::FRNN_ISA {

using std::int8_t;

extern const ForwardKernels<FRNN_CONCAT(FRNN_WEIGHT, _t)> FRNN_CONCAT(FRNN_WEIGHT, _kernels);

const ForwardKernels<FRNN_CONCAT(FRNN_WEIGHT, _t)> FRNN_CONCAT(FRNN_WEIGHT, _kernels) =
    forward_kernels<FRNN_CONCAT(FRNN_WEIGHT, _t)>();

}  // namespace fastrnn::cpu::FRNN_ISA
