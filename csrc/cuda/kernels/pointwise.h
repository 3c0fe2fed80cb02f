// What the pointwise kernels share: one thread a (row, unit), neighbouring threads have neighbouring units,
// so that a warp reads and writes whole sectors.
#pragma once

#include "core/half.h"
#include "cuda/kernels/walk.h"

namespace fastrnn::cuda {

inline constexpr int kPointwiseThreads = 256;

// How a launch divides steps x rows x units into pieces of kPointwiseThreads: 1, 2, 4, ... or 256 threads
// along the units, the rest along the rows. All divisions are of 32 bits: those of 64 are calls on a GPU.
struct Pieces {
  int shift = 0;            // 2^shift threads along the units
  Index along = 0;          // pieces along the units
  Index down = 0, all = 0;  // along the rows; of all steps

  FRNN_HOST_DEVICE Pieces(Index steps, Index rows, Index units) {
    while ((1 << shift) < kPointwiseThreads && (Index{1} << shift) < units) ++shift;
    const int rows_together = kPointwiseThreads >> shift;
    along = (units + (1 << shift) - 1) >> shift;
    down = (rows + rows_together - 1) / rows_together;
    all = steps * down * along;
  }
};

// Calls body(step, row, unit) for this thread's share of steps x rows x units.
template <class X, class Body>
FRNN_DEVICE void for_times(X& x, Index steps, Index rows, Index units, Body body) {
  const Pieces pieces(steps, rows, units);
  const auto all = static_cast<unsigned>(pieces.all), along = static_cast<unsigned>(pieces.along),
             down = static_cast<unsigned>(pieces.down);
  const int first_row = x.thread() >> pieces.shift, first_unit = x.thread() & ((1 << pieces.shift) - 1);
  for (auto i = static_cast<unsigned>(x.block()); i < all; i += static_cast<unsigned>(x.blocks())) {
    const unsigned line = i / along;
    const Index row = Index{line % down} * (kPointwiseThreads >> pieces.shift) + first_row;
    const Index unit = (Index{i % along} << pieces.shift) + first_unit;
    if (row < rows && unit < units) body(Index{line / down}, row, unit);
  }
}
// The same for one step: body(row, unit).
template <class X, class Body>
FRNN_DEVICE void for_units(X& x, Index rows, Index units, Body body) {
  for_times(x, 1, rows, units, [&](Index, Index row, Index unit) { body(row, unit); });
}

// The rows of one step: active(row, unit), or ended(row, unit) where the row's length is up.
template <class X, class Active, class Ended>
FRNN_DEVICE void for_rows(X& x, const Walk& walk, Index step, Index units, Active active, Ended ended) {
  for_units(x, walk.batch, units, [&](Index b, Index unit) {
    const RowAt row(walk, b, step);
    if (row.active()) {
      active(row, unit);
    } else {
      ended(row, unit);
    }
  });
}

// Both biases of one gate of one unit; null: none.
template <class T>
FRNN_DEVICE Compute<T> bias_at(const T* bias_ih, const T* bias_hh, Index i) {
  return bias_ih ? widen(bias_ih[i]) + widen(bias_hh[i]) : Compute<T>(0);
}

// The pre-activations of one step. `input` is W_ih x for all times, `recurrent` W_hh h for this step.
template <class T>
struct Sums {
  const Compute<T>* input = nullptr;  // [T,B] rows, input_stride apart, [G,H] each
  Index input_stride = 0;
  const Compute<T>* recurrent = nullptr;  // [B,G,H]
  const T* bias_ih = nullptr;             // [G,H], or null
  const T* bias_hh = nullptr;

  FRNN_DEVICE Compute<T> input_at(const RowAt& row, Index i) const {
    return input[row.index() * input_stride + i];
  }
  // Gate and unit i of a layer with `width` = G*H.
  FRNN_DEVICE Compute<T> at(const RowAt& row, Index i, Index width) const {
    return input_at(row, i) + recurrent[row.b * width + i] + bias_at(bias_ih, bias_hh, i);
  }
};

// Where the h of one step goes.
template <class T>
struct Hidden {
  Rows<T> y;           // [T,B,R]
  T* state = nullptr;  // [B,R]: the h that enters the next step; of a row that has ended, its last

  // Of an active row.
  FRNN_DEVICE void store(const RowAt& row, Index unit, Index width, Compute<T> h) const {
    const T value = narrow<T>(h);
    y.at(row.time(), row.b)[unit] = value;
    state[row.b * width + unit] = row.ends() || row.goes_on() ? value : narrow<T>(0);
  }
  FRNN_DEVICE void pad(const RowAt& row, Index unit) const { y.at(row.time(), row.b)[unit] = narrow<T>(0); }
};

// Gradient of the h of one step: of its output, of what the next step made of it, or of the final state.
template <class T>
struct Incoming {
  Rows<const T> dy;                       // [T,B,R] or null
  const Compute<T>* recurrent = nullptr;  // [B,R]: dG of the next step times W_hh; null at the last step
  const Compute<T>* carry = nullptr;      // [B,R]: what reaches h directly, GRU; or null
  const T* final_state = nullptr;         // [B,R] dh_n, or null

  FRNN_DEVICE Compute<T> at(const RowAt& row, Index unit, Index width) const {
    const Index i = row.b * width + unit;
    Compute<T> dh = dy ? widen(dy.at(row.time(), row.b)[unit]) : Compute<T>(0);
    if (row.ends()) return final_state ? dh + widen(final_state[i]) : dh;
    if (row.goes_on()) {
      dh += recurrent[i];
      if (carry) dh += carry[i];
    }
    return dh;
  }
};

// Where one step's dG goes: into the array of all times, and, where a step's rows do not lie together there
// (the reverse direction with lengths), into a copy for the product with W_hh.
template <class T>
struct GradientRows {
  T* all = nullptr;   // [T,B,width]
  T* step = nullptr;  // [B,width] or null
  Index width = 0;

  FRNN_DEVICE void store(const RowAt& row, Index column, Compute<T> value) const {
    const T rounded = narrow<T>(value);
    all[row.index() * width + column] = rounded;
    if (step) step[row.b * width + column] = rounded;
  }
  // All columns of one unit, of a row that has ended.
  FRNN_DEVICE void clear(const RowAt& row, Index unit, Index units) const {
    for (Index column = unit; column < width; column += units) store(row, column, Compute<T>(0));
  }
};

}  // namespace fastrnn::cuda
