// All kernels for one instruction set and one element type.  The build compiles this file once for each pair,
// with FRNN_ISA (baseline, avx2, avx512) and FRNN_REAL (float, double) defined and that set's compiler flags.
// It exports one symbol, the table.
#include "cpu/array_kernels.h"
#include "cpu/forward_kernels.h"

namespace fastrnn::cpu::FRNN_ISA {

extern const Kernels<FRNN_REAL> FRNN_CONCAT(FRNN_REAL, _kernels);

constexpr ForwardKernels<FRNN_REAL> forward_part = forward_kernels<FRNN_REAL>();

const Kernels<FRNN_REAL> FRNN_CONCAT(FRNN_REAL, _kernels) = {
    forward_part,
    add_product<FRNN_REAL>,
    pack_rows<FRNN_REAL>,
    column_sum<FRNN_REAL>,
    lstm_backward<FRNN_REAL>,
    lstm_backward_output<FRNN_REAL>,
    lstm_backward_cell<FRNN_REAL>,
    lstm_hidden<FRNN_REAL>,
    lstm_new_cell<FRNN_REAL>,
    gru_backward<FRNN_REAL>,
    gru_backward_candidate<FRNN_REAL>,
    gru_backward_reset<FRNN_REAL>,
    gru_reset_hidden<FRNN_REAL>,
    elman_backward<FRNN_REAL>,
    update<FRNN_REAL>,
    sum_of_squares<FRNN_REAL>,
    scale<FRNN_REAL>,
    add<FRNN_REAL>,
    softmax_cross_entropy<FRNN_REAL>,
};

}  // namespace fastrnn::cpu::FRNN_ISA
