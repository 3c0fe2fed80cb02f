// The table of compiled kernels: one for each instruction set and element type, all behind these structs.
//
// A kernel handles one step (or, for the plain product, any list of rows) for `rows` rows and a range of
// panels.  Rows are given by pointer, so that batch order, strides, lengths, resets and
// directions are the caller's business alone: an ended row is not in the list, a row without a state points
// to zeros.  Rows are independent: a row's result has the same bits whichever rows stand beside it.
//
// Packed weights: a matrix that maps K inputs to G gates of N units is stored as ceil(N / lanes) panels,
// each [K][G][lanes], missing units zero.  One panel holds all gates of `lanes` units.
// Each sum of floats is one chain of fused multiply-adds: first what `z` starts from, then k = 0, 1, 2, ...
//
// W, the type of weights, is float, double, or for quantised inference bfloat16_t or std::int8_t; everything
// else is Compute<W>.  Quantised, a panel is [K / group][G][lanes][group], K filled up with zeros, and rows
// of A are rounded before the product (RoundRows).
//   bfloat16_t    group 2.  Products are exact, their sum is float.
//   std::int8_t   group 4.  Weights are q s, with a scale s for each gate of each unit, and rows too, with
//   one
//                 scale for a row.  q is stored as it is in weights and as q + 128 in rows, because that is
//                 what VNNI multiplies.  Sums are exact in 32 bits for K up to kMostDepth, whatever their
//                 order.  In front of a panel's weights stand its scales, float [G][lanes], and what cancels
//                 the 128, -128 sum_k q, int32 [G][lanes].
#pragma once

#include "cells/optimizers.h"
#include "core/philox.h"
#include "core/types.h"

namespace fastrnn::cpu {

template <class W>
inline constexpr bool kQuantized = false;
template <>
inline constexpr bool kQuantized<bfloat16_t> = true;
template <>
inline constexpr bool kQuantized<std::int8_t> = true;

// Inputs that stand together in a panel.
template <class W>
inline constexpr int kGroup = 1;
template <>
inline constexpr int kGroup<bfloat16_t> = 2;
template <>
inline constexpr int kGroup<std::int8_t> = 4;

// The K at which the sum of K products, and what cancels the 128, still fit a std::int32_t.
inline constexpr Index kMostDepth = 2147483647 / (127 * 128);

// Elements of type W in front of a panel's weights, and in a panel.
template <class W>
FRNN_INLINE constexpr Index panel_header(Index gates, Index lanes) {
  return sizeof(W) == 1 ? gates * lanes * static_cast<Index>(sizeof(float) + sizeof(std::int32_t)) : 0;
}
template <class W>
FRNN_INLINE constexpr Index panel_size(Index depth, Index gates, Index lanes) {
  return panel_header<W>(gates, lanes) + (depth + kGroup<W> - 1) / kGroup<W> * kGroup<W> * gates * lanes;
}

// value = q scale with q = round(value * inverse) from -127 to 127.  `largest` is the largest magnitude in a
// row.  Rows so small that the inverse is infinite count as zero; an infinity or NaN in a row makes its scale
// NaN, and with it all that the row is multiplied into.
struct Int8Scale {
  float scale, inverse;
};
FRNN_INLINE Int8Scale int8_scale(float largest) {
  if (largest < 0x1p-120f) return {0, 0};
  if (largest <= 0x1.fffffep127f) return {largest / 127.0f, 127.0f / largest};
  return {__builtin_nanf(""), 0};
}

// A row as products read it: the caller's own, or what round_rows left.
template <class W>
struct RowOf {
  using type = W;
};
template <>
struct RowOf<bfloat16_t> {
  using type = char;
};
template <>
struct RowOf<std::int8_t> {
  using type = char;
};
template <class W>
using Row = typename RowOf<W>::type;

// A: a[row][k * step], k < depth; quantised, rounded rows and step 1.  Panels as above.
template <class W>
struct Operand {
  const Row<W>* const* a = nullptr;
  Index step = 1;
  const W* panels = nullptr;
  Index depth = 0;  // K
};

// Rows rounded for products with quantised weights; to[row] has round_bytes(depth) bytes and the alignment of
// a float.
struct RoundRows {
  const float* const* rows = nullptr;
  char* const* to = nullptr;
  Index count = 0;
  Index depth = 0;
};

// [first, last) of panels, rows or columns.
struct Range {
  Index first = 0, last = 0;
  bool backwards = false;  // of panels: visit the last one first
};

// out[row][g * units + u] = start + sum_k a[row][k] w[k][g][u], where start is bias[g * units + u], or
// add[row][...], or add[row][...] + add_more[row][...], or 0.  add may be out.
template <class W>
struct Product {
  using T = Compute<W>;
  Operand<W> operand;
  int gates = 1;
  Index units = 0;
  Index rows = 0;
  Range panels;
  const T* bias = nullptr;
  const T* const* add = nullptr;
  const T* const* add_more = nullptr;  // only beside add: starts from add + add_more
  T* const* out = nullptr;
};

// out[row * stride + u] += sum_k a[row][k] w[k][u], panels in any order.
template <class T>
struct AddProduct {
  Operand<T> operand;
  Index units = 0;
  Index rows = 0;
  Range panels;
  T* out = nullptr;
  Index stride = 0;
};

// out[row][g * units + u] = bias[...] + w[tokens[row]][g][u]; panels of depth K = vocabulary.  Quantised, the
// same bits as by a product with one-hot rows.
template <class W>
struct Gather {
  using T = Compute<W>;
  const std::int64_t* tokens = nullptr;
  const W* panels = nullptr;
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
template <class W>
struct StepForward {
  using T = Compute<W>;
  Index units = 0;  // H
  Index rows = 0;
  Range panels;
  Operand<W>
      recurrent;  // h_prev (or, for the GRU reset-before candidate, r h), W_hh; none if h_prev is all zeros
  const T* const* pre = nullptr;
  Operand<W> input;                      // without pre: x, W_ih
  const T* bias = nullptr;               // without pre: (G*H) or null
  const std::int64_t* tokens = nullptr;  // without pre: instead of x,
  const W* columns = nullptr;            // and W_ih, panels of depth `vocabulary`
  Index vocabulary = 0;
  T* const* gates = nullptr;
  const T* const* h_prev = nullptr;  // GRU
  T* const* h = nullptr;
  // LSTM
  const T* const* c_prev = nullptr;
  T* const* c = nullptr;
  const T* peephole = nullptr;  // diagonal: [3][H], i f o; else null
  Operand<W> peephole_full;  // full: c_prev and W_ci, W_cf (lstm_forward); c and W_co (lstm_forward_output)
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

// Panels with `gates` gates of N units from rows of K weights: gate g of unit u has the row that begins at
// from + ((g + begin) % gates * units + u) * depth.
template <class W>
struct PackColumns {
  const Compute<W>* from = nullptr;
  Index gates = 1;
  Index begin = 0;
  Index units = 0;  // N
  Index depth = 0;  // K
  Range panels;
  W* out = nullptr;
};

// A step of an optimizer for [first, last) of an array: cells/optimizers.h.  The arrays must not overlap.
template <class T>
struct Update {
  cells::Rule rule = cells::Rule::sgd;
  const cells::UpdateNumbers<T>* numbers = nullptr;
  T* p = nullptr;
  const T* g = nullptr;
  T* a = nullptr;
  T* b = nullptr;  // null where the rule has one buffer
  Index first = 0, last = 0;
};

// Rows [first, last) of logits [rows][width] and their targets, from 0 to width - 1 where scored: losses[row]
// = -log softmax(logits)[target], gradient = scale (softmax(logits) - one-hot target).  Where scored (null:
// all are) is 0 both are 0, whatever the row and the target hold.
template <class T>
struct SoftmaxCrossEntropy {
  Index first = 0, last = 0, width = 0;
  const T* logits = nullptr;
  const std::int64_t* targets = nullptr;
  const std::uint8_t* scored = nullptr;
  T scale = 1;
  T* gradient = nullptr;
  double* losses = nullptr;
};

// out[u] = kept where the mask keeps unit u of row (t, b), else dropped, u in `units`.
template <class T>
struct DrawMask {
  const Dropout* mask = nullptr;
  Index t = 0, b = 0, direction = 0;
  Range units;
  T kept = 1, dropped = 0;
  T* out = nullptr;
};

// What inference needs, and a training forward.
template <class W>
struct ForwardKernels {
  const char* name;  // the instructions of its products
  int lanes;
  int tile_rows[4];  // rows of a tile, where there are many, with 1, 2, 3, 4 gates

  int rows_of_tile(Index gates) const { return tile_rows[gates - 1]; }

  void (*product)(const Product<W>&);
  void (*gather)(const Gather<W>&);

  void (*lstm_forward)(const StepForward<W>&);           // with a full peephole: all but o and h
  void (*lstm_forward_output)(const StepForward<W>&);    // full peephole: o and h
  void (*gru_forward)(const StepForward<W>&);            // reset-after
  void (*gru_forward_reset)(const StepForward<W>&);      // reset-before: r, z and r h; gates must be given
  void (*gru_forward_candidate)(const StepForward<W>&);  // reset-before: n and h
  void (*elman_forward)(const StepForward<W>&);

  // Not quantised.
  void (*pack_columns)(const PackColumns<W>&);
  void (*draw_mask)(const DrawMask<W>&);
  // Quantised only.
  Index (*round_bytes)(Index depth);
  void (*round_rows)(const RoundRows&);
};

template <class T>
struct Kernels : ForwardKernels<T> {
  void (*add_product)(const AddProduct<T>&);
  void (*pack_rows)(const PackRows<T>&);
  void (*column_sum)(const ColumnSum<T>&);

  void (*lstm_backward)(const StepBackward<T>&);         // without a full peephole
  void (*lstm_backward_output)(const StepBackward<T>&);  // full peephole: da_o, and dc by way of h
  void (*lstm_backward_cell)(const StepBackward<T>&);    // full peephole: the rest
  void (*lstm_hidden)(const StepForward<T>&);    // h = o tanh(c) again, from saved gates (pre) and c_prev
  void (*lstm_new_cell)(const StepForward<T>&);  // c again, before zoneout, from saved gates (pre) and c_prev

  void (*gru_backward)(const StepBackward<T>&);            // reset-after
  void (*gru_backward_candidate)(const StepBackward<T>&);  // reset-before: da_z, da_n
  void (*gru_backward_reset)(const StepBackward<T>&);      // reset-before: da_r; recurrent = da_n, W_hn^T
  void (*gru_reset_hidden)(const StepForward<T>&);         // reset-before: r h again, from saved gates (pre)

  void (*elman_backward)(const StepBackward<T>&);

  void (*update)(const Update<T>&);
  double (*sum_of_squares)(const T* values, Index count);
  void (*scale)(T* values, Index count, T factor);
  void (*add)(T* sum, const T* by, Index count);  // sum += by; they must not overlap
  void (*softmax_cross_entropy)(const SoftmaxCrossEntropy<T>&);
};

namespace baseline {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
extern const ForwardKernels<bfloat16_t> bfloat16_kernels;
extern const ForwardKernels<std::int8_t> int8_kernels;
}  // namespace baseline
namespace avx2 {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
extern const ForwardKernels<bfloat16_t> bfloat16_kernels;
extern const ForwardKernels<std::int8_t> int8_kernels;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
extern const ForwardKernels<bfloat16_t> bfloat16_kernels;
extern const ForwardKernels<std::int8_t> int8_kernels;
}  // namespace avx512
// Quantised products by instructions of their own; the rest as in the set that the name begins with.
namespace avx2_vnni {
extern const ForwardKernels<std::int8_t> int8_kernels;
}
namespace avx512_vnni {
extern const ForwardKernels<std::int8_t> int8_kernels;
}
namespace avx512_bf16 {
extern const ForwardKernels<bfloat16_t> bfloat16_kernels;
}

}  // namespace fastrnn::cpu
