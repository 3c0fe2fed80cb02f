// The table of compiled kernels: one for each instruction set and element type, all behind these structs.
//
// A kernel handles one step (or, for the plain product, any list of rows) for `rows` rows and a range of
// panels.  Rows are given by pointer, so that batch order, strides, lengths, resets and
// directions are the caller's business alone: an ended row is not in the list, a row without a state points
// to zeros.  Rows are independent: a row's result has the same bits whichever rows stand beside it.
//
// Packed weights: a matrix that maps K inputs to G gates of N units is stored as ceil(N / lanes) panels,
// each [K][G][lanes], missing units zero.  One panel holds all gates of `lanes` units.
// Each sum is one chain of fused multiply-adds: first what `z` starts from, then k = 0, 1, 2, ...
#pragma once

#include "core/types.h"

namespace fastrnn::cpu {

// A: a[row][k * step], k < depth.  Panels as above.
template <class T>
struct Operand {
  const T* const* a = nullptr;
  Index step = 1;
  const T* panels = nullptr;
  Index depth = 0;  // K
};

// [first, last) of panels, rows or columns.
struct Range {
  Index first = 0, last = 0;
  bool backwards = false;  // of panels: visit the last one first
};

// out[row][g * units + u] = start + sum_k a[row][k] w[k][g][u], where start is bias[g * units + u], or
// add[row][...], or add[row][...] + add_more[row][...], or 0.  add may be out: accumulation.
template <class T>
struct Product {
  Operand<T> operand;
  int gates = 1;
  Index units = 0;
  Index rows = 0;
  Range panels;
  const T* bias = nullptr;
  const T* const* add = nullptr;
  const T* const* add_more = nullptr;  // only beside add: starts from add + add_more
  T* const* out = nullptr;
};

// out[row][g * units + u] = bias[...] + w[tokens[row]][g][u]; panels of depth K = vocabulary.
template <class T>
struct Gather {
  const std::int64_t* tokens = nullptr;
  const T* panels = nullptr;
  Index depth = 0;
  int gates = 1;
  Index units = 0;
  Index rows = 0;
  Range range;
  const T* bias = nullptr;
  T* const* out = nullptr;
};

// One step forward.  For each row: pre (G*H) = W_ih x + b, or null and the step multiplies x itself (not the
// GRU reset-before); h_prev, c_prev the state before the step.
// `gates` (may be null, may be pre): where the activated gates are saved for backward.
// h must overlap neither h_prev nor, without pre, x; c may be c_prev.  A panel's rows are finished in the
// order of the list: without a full peephole, c_prev of a row may be the c of one before it.
template <class T>
struct StepForward {
  Index units = 0;  // H
  Index rows = 0;
  Range panels;
  Operand<T> recurrent;  // h_prev (or, for the GRU reset-before candidate, r h), W_hh
  const T* const* pre = nullptr;
  Operand<T> input;         // without pre: x, W_ih
  const T* bias = nullptr;  // without pre: (G*H) or null
  T* const* gates = nullptr;
  const T* const* h_prev = nullptr;  // GRU
  T* const* h = nullptr;
  // LSTM
  const T* const* c_prev = nullptr;
  T* const* c = nullptr;
  const T* peephole = nullptr;  // diagonal: [3][H], i f o; else null
  Operand<T> peephole_full;  // full: c_prev and W_ci, W_cf (lstm_forward); c and W_co (lstm_forward_output)
  // GRU
  const T* candidate_bias = nullptr;  // reset-after: b_hn or null
  T* const* reset_h = nullptr;        // reset-before: where r h goes
  // Elman
  Nonlinearity nonlinearity = Nonlinearity::tanh;
};

// One step backward.  dh (the gradient of this step's h) = dy + extra + the recurrent product, whose rows are
// dG of the following step (or, with a projection, the gradient of the projected h); missing parts point to
// zeros.
template <class T>
struct StepBackward {
  Index units = 0;
  Index rows = 0;
  Range panels;
  Operand<T> recurrent;
  const T* const* dy = nullptr;
  const T* const* extra = nullptr;  // final-state gradient, or GRU's carry
  const T* const* gates = nullptr;  // as saved by forward; Elman: h
  T* const* dg = nullptr;           // out: gradient_columns() of this step
  // LSTM
  const T* const* c = nullptr;
  const T* const* c_prev = nullptr;
  const T* const* dc_next = nullptr;  // gradient of c that comes from the following step
  T* const* dc = nullptr;             // out: gradient of c_prev; may be dc_next
  const T* peephole = nullptr;
  Operand<T> peephole_output;  // full, lstm_backward_cell: dG's o columns of this step, W_co^T
  Operand<T>
      peephole_cell;  // full, lstm_backward_cell: dG's i, f columns of the following step, W_ci^T W_cf^T
  // GRU
  const T* const* h_prev = nullptr;
  const T* const* candidate = nullptr;  // reset-after: W_hn h_prev + b_hn
  T* const* carry = nullptr;            // out: what reaches h_prev directly (dh z); may be extra
  // Elman
  Nonlinearity nonlinearity = Nonlinearity::tanh;
};

// out[u] += sum over rows, in order, of a[row * stride + u] (* b[row][u] if b), u in [first, last)
template <class T>
struct ColumnSum {
  const T* a = nullptr;
  Index stride = 0;
  const T* const* b = nullptr;
  Index rows = 0;
  Index first = 0, last = 0;
  T* out = nullptr;
};

// Panels with one gate from K rows of N values: panel p holds, for each k, rows[k][p * lanes + ...].
template <class T>
struct PackRows {
  const T* const* rows = nullptr;
  Index depth = 0;  // K
  Index units = 0;  // N
  Range panels;
  T* out = nullptr;
};

template <class T>
struct Kernels {
  int lanes;
  int tile_rows[4];  // rows of the largest tile of a product with 1, 2, 3, 4 gates

  int rows_of_tile(Index gates) const { return tile_rows[gates - 1]; }

  void (*product)(const Product<T>&);
  void (*gather)(const Gather<T>&);
  void (*pack_rows)(const PackRows<T>&);
  void (*column_sum)(const ColumnSum<T>&);

  void (*lstm_forward)(const StepForward<T>&);           // with a full peephole: all but o and h
  void (*lstm_forward_output)(const StepForward<T>&);    // full peephole: o and h
  void (*lstm_backward)(const StepBackward<T>&);         // without a full peephole
  void (*lstm_backward_output)(const StepBackward<T>&);  // full peephole: da_o, and dc by way of h
  void (*lstm_backward_cell)(const StepBackward<T>&);    // full peephole: the rest
  void (*lstm_hidden)(const StepForward<T>&);  // h = o tanh(c) again, from saved gates (pre) and c_prev

  void (*gru_forward)(const StepForward<T>&);              // reset-after
  void (*gru_forward_reset)(const StepForward<T>&);        // reset-before: r, z and r h; gates must be given
  void (*gru_forward_candidate)(const StepForward<T>&);    // reset-before: n and h
  void (*gru_backward)(const StepBackward<T>&);            // reset-after
  void (*gru_backward_candidate)(const StepBackward<T>&);  // reset-before: da_z, da_n
  void (*gru_backward_reset)(const StepBackward<T>&);      // reset-before: da_r; recurrent = da_n, W_hn^T
  void (*gru_reset_hidden)(const StepForward<T>&);         // reset-before: r h again, from saved gates (pre)

  void (*elman_forward)(const StepForward<T>&);
  void (*elman_backward)(const StepBackward<T>&);
};

namespace baseline {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
}  // namespace baseline
namespace avx2 {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
}  // namespace avx512

}  // namespace fastrnn::cpu
