// The time loops: one direction of one layer over a whole sequence, on the kernels of one instruction set.
#pragma once

#include <utility>

#include "core/buffers.h"
#include "core/philox.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/schedule.h"
#include "cpu/wavefront.h"

namespace fastrnn::cpu {

// What forward and backward share.
template <class T>
struct Sequence {
  LayerShape shape;
  const Schedule* schedule = nullptr;
  bool reverse = false;
  Index batch = 0;                       // B of the arrays
  Rows<const T> x;                       // [T,B,I]; not with tokens
  const std::int64_t* tokens = nullptr;  // [T,B], or null
  const Dropout* dropout = nullptr;      // mask of x, or null
  const StateNoise* noise = nullptr;     // recurrent dropout and zoneout, or null
  const std::uint8_t* reset = nullptr;   // [T,B], true where not 0, or null
  const T* h0 = nullptr;                 // [B,R], null = zeros
  const T* c0 = nullptr;                 // [B,H], null = zeros
  // Saved by a training forward, null in inference.  With segments, forward saves c at the end of each one
  // and nothing else; backward has gates and cells for one segment, in scratch.
  T* gates = nullptr;       // [T,B,reserved_gates,H]; with segments [segment,B,reserved_gates,H]
  T* cells = nullptr;       // [T,B,H]; with segments [segment,B,H] (LSTM)
  Index segment = 0;        // steps; 0 = none
  T* kept_cells = nullptr;  // [T / segment,B,H] (LSTM): c after `segment` steps, after twice as many, ...
  Progress* progress = nullptr;  // raised as y, or dx, is written; null where nobody waits for it

  Index direction() const { return reverse ? 1 : 0; }
  // Where gates and cells hold the step of row b at time t, in units of H.
  Index saved_at(Index step, Index t, Index b) const { return (segment ? step % segment : t) * batch + b; }
  // Where c of such a step is kept, null if it is not.
  T* kept_cell(Index step, Index b) const {
    if (!kept_cells || (step + 1) % segment != 0) return nullptr;
    return kept_cells + (step / segment * batch + b) * shape.hidden;
  }
  // All threads have written what `steps` steps give.
  void reach(Index steps, const Share& share) const {
    if (!progress) return;
    share.wait_all();
    if (share.tid == 0) progress->reach(steps);
  }
  // Is there a boundary between row j's steps s - 1 and s (in processing order)?
  bool starts_piece(Index step, Index j) const {
    if (!reset) return false;
    const Index t = schedule->time(step, j, reverse);
    if (reverse) return step > 0 && reset[(t + 1) * batch + schedule->row(j)] != 0;
    return reset[t * batch + schedule->row(j)] != 0;
  }
};

// out[row] = W_ih x + b: of the x in `input`, or of `tokens` if there are some.
template <class W>
void input_product(const ForwardKernels<W>& kernels, const PackedLayer<W>& weights, const LayerShape& shape,
                   Range panels, Index rows, const Operand<W>& input, const std::int64_t* tokens,
                   Compute<W>* const* out) {
  const int gates = static_cast<int>(shape.gates());
  if (tokens) {
    kernels.gather(
        {tokens, weights.input, shape.input, gates, shape.hidden, rows, panels, weights.bias, out});
    return;
  }
  Product<W> product;
  product.operand = input;
  product.gates = gates;
  product.units = shape.hidden;
  product.rows = rows;
  product.panels = panels;
  product.bias = weights.bias;
  product.out = out;
  kernels.product(product);
}

// One step of a cell, by one kernel or by two with a wait between them; `args` lacks only what the cell's
// weights say. h_read is h_prev as the products read it; inner(rows, panels) is the second product's operand,
// of r h_read or c, of depth H.
template <class W, class Inner>
FRNN_INLINE void forward_cell(const ForwardKernels<W>& kernels, const PackedLayer<W>& weights,
                              const LayerShape& shape, const Share& share, StepForward<W>& args,
                              const Compute<W>* const* h_read, Inner inner) {
  switch (shape.cell) {
    case Cell::lstm:
      args.peephole = weights.peephole;
      if (shape.peephole != Peephole::full) return kernels.lstm_forward(args);
      args.peephole_full = inner(args.c_prev, weights.peephole_cell);
      kernels.lstm_forward(args);
      share.wait_units();
      args.peephole_full = inner(args.c, weights.peephole_output);
      return kernels.lstm_forward_output(args);
    case Cell::gru:
      if (shape.reset_after) {
        args.candidate_bias = weights.candidate_bias;
        return kernels.gru_forward(args);
      }
      std::swap(args.h_prev, h_read);
      kernels.gru_forward_reset(args);
      share.wait_units();
      std::swap(args.h_prev, h_read);
      args.recurrent = inner(args.reset_h, weights.candidate);
      return kernels.gru_forward_candidate(args);
    case Cell::rnn: args.nonlinearity = shape.nonlinearity; return kernels.elman_forward(args);
  }
}

// Does a step with so many rows of one thread multiply x as well as h?  It saves a round trip of W_ih x + b
// by way of memory, and is worth it once a step has the rows to make W_ih's way from memory pay.
template <class W>
bool fuses_input(const LayerShape& shape, Index rows, bool tokens, const ForwardKernels<W>& kernels);

// Steps whose weight gradients are computed together.
Index gradient_block(const LayerShape& shape, Index steps, Index batch);

// y may be any rows but must not overlap x; h_n and c_n may be h0 and c0, or h_n the y of a single step.
// With quantised weights W only inference.
template <class W>
struct ForwardCall : Sequence<Compute<W>> {
  using T = Compute<W>;
  const ForwardKernels<W>* kernels = nullptr;
  const PackedLayer<W>* weights = nullptr;
  const Index* state_rows = nullptr;  // row b's state is at this row of h0, c0, h_n, c_n; null = b
  Rows<T> y;                          // [T,B,R], out; steps past a row's length are left alone
  T* h_n = nullptr;                   // [B,R], out
  T* c_n = nullptr;                   // [B,H], out; in inference also where c lives meanwhile
  // Memory, laid out by layout().
  Index block_rows = 1;  // most rows of one thread whose input product is computed ahead, over some steps
  T* pre = nullptr;      // of a block: [threads][block_rows][G*H], by units one for all threads
  T* dropped = nullptr;
  T* hidden = nullptr;
  T* reset_h = nullptr;
  // Where c is not kept and a step still reads the c before it once there is a new one: with a full peephole,
  // where every unit reads all of it, and with zoneout.
  T* cell_pair = nullptr;
  // Recurrent dropout and zoneout.
  T* keep = nullptr;                 // [threads][H]: of one row
  T* scale = nullptr;                // recurrent dropout, [B,R]: its factors,
  T* h_read = nullptr;               // h times these, [2][B,R]: of the step before, and of this one
  const T** h_read_lists = nullptr;  // [threads][B]
  const T* zeros = nullptr;
  char* lists = nullptr;  // lists of rows, one set per thread
  Index list_bytes = 0;

  void layout(Arena& arena, const Split& split);
};

// The steps [first, last), after those before them.
template <class W>
void forward(const ForwardCall<W>& call, Range steps, const Share& share);

// Gradients of a layer's parameters, out: they start at 0 and each block adds to them; bias_hh is copied from
// bias_ih, where the two are the same.
template <class T>
struct LayerGradients : LayerArrays<T> {
  T* weight_ih_transposed = nullptr;  // (I, G*H), instead of weight_ih with tokens
};

template <class T>
struct BackwardCall : Sequence<T> {
  const Kernels<T>* kernels = nullptr;
  const TransposedLayer<T>* weights = nullptr;
  const PackedLayer<T>* forward_weights = nullptr;  // with segments
  LayerParameters<T> parameters;
  Rows<const T> y;          // as forward left it
  Rows<const T> dy;         // [T,B,R] or null
  const T* dh_n = nullptr;  // [B,R] or null
  const T* dc_n = nullptr;  // [B,H] or null
  Rows<T> dx;               // [T,B,I], out, or null
  bool mask_dx = false;     // dropped where x was; else that is left to who adds the second direction's dx
  T* dh0 = nullptr;         // [B,R], out
  T* dc0 = nullptr;         // [B,H], out
  LayerGradients<T> gradients;
  // Memory, laid out by layout().
  Index block = 1;  // gradient_block()
  // Of dG's rows: an odd number of cache lines. Weight gradients read dG down its columns, and at 4 KB from
  // row to row a column would lie in one set of the first cache.
  Index dg_stride = 0;
  T* dg = nullptr;         // [active rows of a block][gradient_columns]
  T* dg_next = nullptr;    // [B][gradient_columns]: the step after the block
  T* dc = nullptr;         // [B,H]
  T* carry = nullptr;      // [B,R], GRU and zoneout: what reaches the h before directly
  T* candidate = nullptr;  // [rows of a block][H]: GRU q, or r h
  T* projected = nullptr;  // [rows of a block][P]: gradient of the projected h
  T* hidden = nullptr;     // [rows of a block][H]: o tanh(c)
  T* dropped = nullptr;    // [rows of a block][I]
  T* scale = nullptr;      // recurrent dropout, [B,R]: its factors
  T* h_read = nullptr;     // [rows of a block][R]: h_prev times these
  T* incoming = nullptr;   // [B,R]: gradient of h before zoneout, where the step's kernel can't compute it
  T* direct = nullptr;     // [B,H], GRU: its part of carry
  T* new_cells = nullptr;  // zoneout of c, [rows of a block][H]: c before it,
  T* new_dc = nullptr;     // [B,H]: its gradient by way of c alone,
  T* kept_dc = nullptr;    // [B,H]: and what the c before it gets directly
  T* unused_h = nullptr;   // with segments, [threads][H]: h computed again, which y has
  struct {
    T *x = nullptr, *h_prev = nullptr, *inner = nullptr, *c_prev = nullptr, *c = nullptr;
  } panels;  // a block's rows as panels; inner: r h, or o tanh(c)
  const T* zeros = nullptr;
  char* lists = nullptr;  // lists of rows, one set per thread
  Index list_bytes = 0;

  void layout(Arena& arena, int threads);
};

// So many of the steps, counted from the end, after those before them: {0, all} goes through all of them.
template <class T>
void backward(const BackwardCall<T>& call, Range steps, const Share& share);

}  // namespace fastrnn::cpu
