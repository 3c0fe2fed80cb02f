// bf16x3: float32 products on the tensor cores of bfloat16.
#pragma once

#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

// float as the sum of two bfloat16. What overflows or is no number has no rest.
FRNN_HOST_DEVICE void split_float(float value, bfloat16_t& hi, bfloat16_t& lo) {
  hi = narrow<bfloat16_t>(value);
  const float rest = value - widen(hi);
  lo = narrow<bfloat16_t>(rest - rest == 0 ? rest : 0);
}

// float as the sum of two bfloat16, three times over, so that one product of three times the depth is
// hi hi + hi lo + lo hi:  to [rows,3*columns] = hi hi lo (first operand) or hi lo hi (second).
// With depth_rows the copies lie below one another instead: to [3*rows,columns].
struct SplitFloat {
  static constexpr const char* kName = "split_float";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Index rows = 0, columns = 0;
    const float* from = nullptr;
    Index from_stride = 0;
    bfloat16_t* to = nullptr;
    bool second = false, depth_rows = false;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, p.rows, p.columns, [&](Index row, Index column) {
      const float value = p.from[row * p.from_stride + column];
      bfloat16_t hi, lo;
      split_float(value, hi, lo);
      const Index at = p.depth_rows ? row * p.columns + column : 3 * row * p.columns + column;
      const Index next = p.depth_rows ? p.rows * p.columns : p.columns;
      p.to[at] = hi;
      p.to[at + next] = p.second ? lo : hi;
      p.to[at + 2 * next] = p.second ? hi : lo;
    });
  }
};

}  // namespace fastrnn::cuda
