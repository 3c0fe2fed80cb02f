// The kernels that inference needs, for one instruction set, as the entries of a table.
#pragma once

#include "cpu/draw.h"
#include "cpu/elman_step.h"
#include "cpu/gru_step.h"
#include "cpu/lstm_step.h"

#define FRNN_TEXT_(a) #a
#define FRNN_TEXT(a) FRNN_TEXT_(a)

namespace fastrnn::cpu::FRNN_ISA {

template <class W>
Index round_bytes(Index depth) {
  constexpr Index line = 64;  // which also leaves room for whole vectors
  return (8 + Dot<W>::row_bytes(depth + VecF::lanes) + line - 1) / line * line;
}
template <class W>
void round_rows(const RoundRows& p) {
  for (Index row = 0; row < p.count; ++row) Dot<W>::round_row(p.rows[row], p.depth, p.to[row]);
}

template <class W>
constexpr ForwardKernels<W> forward_kernels() {
  ForwardKernels<W> kernels{FRNN_TEXT(FRNN_ISA),
                            Vec<Compute<W>>::lanes,
                            {main_rows(1), main_rows(2), main_rows(3), main_rows(4)},
                            product<W>,
                            gather<W>,
                            lstm_forward<W>,
                            lstm_forward_output<W>,
                            gru_forward<W>,
                            gru_forward_reset<W>,
                            gru_forward_candidate<W>,
                            elman_forward<W>,
                            nullptr,
                            nullptr,
                            nullptr,
                            nullptr};
  if constexpr (kQuantized<W>) {
    kernels.round_bytes = round_bytes<W>;
    kernels.round_rows = round_rows<W>;
  } else {
    kernels.pack_columns = pack_columns<W>;
    kernels.draw_mask = draw_mask<W>;
  }
  return kernels;
}

}  // namespace fastrnn::cpu::FRNN_ISA
