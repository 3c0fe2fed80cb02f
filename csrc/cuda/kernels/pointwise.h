// What the pointwise kernels share: one thread for each (row, unit). Neighbouring threads have neighbouring
// units, so that a warp reads and writes whole sectors.
#pragma once

#include "cells/zoneout.h"
#include "core/half.h"
#include "core/philox.h"
#include "cuda/kernels/walk.h"

namespace fastrnn::cuda {

inline constexpr int kPointwiseThreads = 256;

// How a launch divides steps x rows x units into pieces of kPointwiseThreads: 1, 2, 4, ... or 256 threads
// along the units, the rest along the rows. A kernel of one step finds this out before its first load, so
// there are no loops here, and no divisions of 64 bits, which are calls on a GPU.
struct Pieces {
  static constexpr int kShift = 8;
  static_assert(1 << kShift == kPointwiseThreads, "");

  int shift = 0, row_shift = 0;  // 2^shift threads along the units, 2^row_shift along the rows
  Index along = 0;               // pieces along the units
  Index down = 0, all = 0;       // along the rows; of all steps

  FRNN_HOST_DEVICE Pieces(Index steps, Index rows, Index units) {
    const auto threads =
        units < kPointwiseThreads ? static_cast<unsigned>(units) : unsigned{kPointwiseThreads};
    shift = threads > 1 ? 32 - __builtin_clz(threads - 1) : 0;
    row_shift = kShift - shift;
    along = (units + (1 << shift) - 1) >> shift;
    down = (rows + (1 << row_shift) - 1) >> row_shift;
    all = steps * down * along;
  }
};

// Calls body(line, row, unit) for this thread's share of the pieces: `line` counts them but along the units,
// `row` is of the piece.
template <class X, class Body>
FRNN_DEVICE void for_pieces(X& x, const Pieces& pieces, Body body) {
  const auto all = static_cast<unsigned>(pieces.all), along = static_cast<unsigned>(pieces.along);
  const int row = x.thread() >> pieces.shift, unit = x.thread() & ((1 << pieces.shift) - 1);
  for (auto i = static_cast<unsigned>(x.block()); i < all; i += static_cast<unsigned>(x.blocks())) {
    const unsigned line = i / along;
    body(line, row, (Index{i - line * along} << pieces.shift) + unit);
  }
}
// Calls body(step, row, unit) for this thread's share of steps x rows x units.
template <class X, class Body>
FRNN_DEVICE void for_times(X& x, Index steps, Index rows, Index units, Body body) {
  const Pieces pieces(steps, rows, units);
  const auto down = static_cast<unsigned>(pieces.down);
  for_pieces(x, pieces, [&](unsigned line, int row_of_piece, Index unit) {
    const unsigned step = line / down;
    const Index row = (Index{line - step * down} << pieces.row_shift) + row_of_piece;
    if (row < rows && unit < units) body(Index{step}, row, unit);
  });
}
// The same for one step: body(row, unit).
template <class X, class Body>
FRNN_DEVICE void for_units(X& x, Index rows, Index units, Body body) {
  const Pieces pieces(1, rows, units);
  for_pieces(x, pieces, [&](unsigned line, int row_of_piece, Index unit) {
    const Index row = (Index{line} << pieces.row_shift) + row_of_piece;
    if (row < rows && unit < units) body(row, unit);
  });
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

// What the gates of one unit are the sums of.
template <class A, int gates>
struct GateSums {
  A input[gates], recurrent[gates], bias_ih[gates], bias_hh[gates];

  FRNN_DEVICE A at(int gate) const { return input[gate] + recurrent[gate] + (bias_ih[gate] + bias_hh[gate]); }
};

// The pre-activations of one step. `input` is W_ih x for all times, `recurrent` W_hh h for this step.
template <class T>
struct Sums {
  const Compute<T>* input = nullptr;  // [T,B] rows, input_stride apart, [G,H] each
  Index input_stride = 0;
  const Compute<T>* recurrent = nullptr;  // [B,G,H]
  const T* bias_ih = nullptr;             // [G,H], or null: zeros
  const T* bias_hh = nullptr;

  // All gates of a unit of H. A thread has one unit, so nothing else hides how long memory takes: it loads
  // everything before it uses, or stores, anything.
  template <int gates>
  FRNN_DEVICE GateSums<Compute<T>, gates> load(const RowAt& row, Index unit, Index H) const {
    GateSums<Compute<T>, gates> sums;
    const Compute<T>*const in = input + row.index() * input_stride + unit, *const out = recurrent +
                                                                                        row.b * gates * H +
                                                                                        unit;
    FRNN_UNROLL
    for (int gate = 0; gate < gates; ++gate) {
      sums.input[gate] = in[gate * H];
      sums.recurrent[gate] = out[gate * H];
      sums.bias_ih[gate] = bias_ih ? widen(bias_ih[gate * H + unit]) : Compute<T>(0);
      sums.bias_hh[gate] = bias_ih ? widen(bias_hh[gate * H + unit]) : Compute<T>(0);
    }
    return sums;
  }
};

// Recurrent dropout and zoneout of one direction of one layer (Network::state_noise). A mask is drawn by each
// thread that needs it, for its one unit; without noise there is a branch that all threads take alike.
struct Noise : StateNoise {
  const std::uint64_t* key = nullptr;  // of the masks (Dropout::make_key), on the device; null in inference

  // h as the recurrent products read it, or the gradient of that as the gradient of h.
  template <class A>
  FRNN_DEVICE A masked(Index b, Index unit, A value) const {
    return drops_h ? recurrent.apply(recurrent.draw_one(*key, 0, b, 0, unit), value) : value;
  }
  // h or c after its zoneout, where there is one.
  template <class A>
  FRNN_DEVICE A zone_out(const Zoneout& zoneout, const RowAt& row, Index unit, A before, A after) const {
    return cells::zoneout(zoneout.expected ? static_cast<A>(zoneout.p) : keep<A>(zoneout, row, unit), before,
                          after);
  }
  // d, the gradient of that, becomes the gradient of `after`; returns that of `before`.
  template <class A>
  FRNN_DEVICE A zone_out_backward(const Zoneout& zoneout, const RowAt& row, Index unit, A& d) const {
    A before;
    cells::zoneout_backward(keep<A>(zoneout, row, unit), d, before, d);
    return before;
  }

 private:
  template <class A>
  FRNN_DEVICE A keep(const Zoneout& zoneout, const RowAt& row, Index unit) const {
    const Dropout& updates = zoneout.updates;
    return updates.draw_one(*key, row.time(), row.b, 0, unit) < updates.threshold ? A(0) : A(1);
  }
};

// Where the h of one step goes.
template <class T>
struct Hidden {
  Rows<T> y;           // [T,B,R]
  T* state = nullptr;  // [B,R]: the h that enters this step, then the next; of a row that has ended, its last
  T* read = nullptr;   // [B,R]: the same as the next step's products read it; only with recurrent dropout

  // Of an active row, once: h before zoneout.
  FRNN_DEVICE void store(const RowAt& row, Index unit, Index width, const Noise& noise, Compute<T> h) const {
    const Index at = row.b * width + unit;
    if (noise.zones_h) h = noise.zone_out(noise.h, row, unit, widen(state[at]), h);
    const T value = narrow<T>(h), next = row.ends() || row.goes_on() ? value : narrow<T>(0);
    y.at(row.time(), row.b)[unit] = value;
    state[at] = next;
    if (noise.drops_h) read[at] = narrow<T>(noise.masked(row.b, unit, widen(next)));
  }
  FRNN_DEVICE void pad(const RowAt& row, Index unit) const { y.at(row.time(), row.b)[unit] = narrow<T>(0); }
};

// Gradient of the h of one step: of its output, of what the next step made of it, or of the final state.
template <class T>
struct Incoming {
  using A = Compute<T>;

  Rows<const T> dy;              // [T,B,R] or null
  const A* recurrent = nullptr;  // [B,R]: dG of the next step times W_hh; null at the last step
  A* carry = nullptr;  // [B,R], GRU and zoneout of h: the part of the gradient that comes past W_hh;
                       // of the next step, then what this step passes on; or null
  const T* final_state = nullptr;  // [B,R] dh_n, or null

  // Of an active row, once: the gradient of h before zoneout.
  FRNN_DEVICE A take(const RowAt& row, Index unit, Index width, const Noise& noise) const {
    const Index i = row.b * width + unit;
    A dh = dy ? widen(dy.at(row.time(), row.b)[unit]) : A(0);
    if (row.ends()) {
      if (final_state) dh += widen(final_state[i]);
    } else if (row.goes_on()) {
      dh += noise.masked(row.b, unit, recurrent[i]);
      if (carry) dh += carry[i];
    }
    if (noise.zones_h) carry[i] = noise.zone_out_backward(noise.h, row, unit, dh);
    return dh;
  }
  // After that, where the equations also pass some of it on to the h that entered.
  FRNN_DEVICE void leave(Index i, const Noise& noise, A direct) const {
    carry[i] = noise.zones_h ? carry[i] + direct : direct;
  }
};

// The c that entered an active step, by what forward saved; c0 [B,units] or null = zeros.
template <class T>
FRNN_DEVICE Compute<T> entered_cell(const RowAt& row, Index unit, Index units, const Compute<T>* cells,
                                    const T* c0) {
  if (row.starts_piece()) return 0;
  if (row.step > 0) return cells[row.previous_index() * units + unit];
  return c0 ? widen(c0[row.b * units + unit]) : Compute<T>(0);
}

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
