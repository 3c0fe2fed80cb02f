// All steps of a layer, backward, with the weights on the chip (persistent.h): from the gradients of the
// outputs to dG of every step. What the weights get of it are products over all steps, later.
//
// A is W_hh^T for the gates of a rank's units: its rows are all units, its depth [gate][unit] of its own. So
// a rank has part of the gradient of every h, and the owner of a unit adds the parts in the order of ranks.
//
// Iteration i, which is step T-1-i:
//   1. expect the parts that iteration i+1 adds, of all ranks, in buffer (i+1) % 2
//   2. wait for those of this one in buffer i % 2; the first has none
//   3. dG of the own units, to memory and to shared memory; sync()
//   4. multiply; sync(); send to each rank its units of the product
// Two buffers are enough: a peer sends parts for i+2 into the buffer of i after it has received ours for i+1,
// which we sent after the first sync() of i, when all of us had read the buffer. The last iteration neither
// expects, multiplies nor sends, and the cluster meets once more before anyone leaves. One CTA by itself
// reads the product where it is.
#pragma once

#include "cells/elman.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cuda/kernels/persistent.h"

namespace fastrnn::cuda {

// One direction of a layer.
template <class T>
struct PersistentBackwardPart {
  Walk walk;
  const T* weight_hh = nullptr;  // [G,H,H]
  const T* peephole = nullptr;   // [3,H], or null
  const T* gates = nullptr;      // reserve
  const float* cells = nullptr;  // reserve, LSTM
  const T* h_prev = nullptr;     // [T,B,H], as each step saw it; GRU
  Rows<const T> y;               // Elman
  const T* c0 = nullptr;         // [B,H], or null = zeros
  Rows<const T> dy;              // or null
  const T* dh_n = nullptr;       // [B,H], or null
  const T* dc_n = nullptr;
  GradientRows<T> dg;
  float* state = nullptr;  // [B,H], out: gradient of the initial c (LSTM), or the part of that of the initial
                           // h that comes past W_hh (GRU)
};

// A cell: what one unit of one row makes of dh in step(). It stores its columns of dG, puts the gradients of
// the gates, in W_hh's order, into `recurrent`, and leaves in `state` what the step before needs: the
// gradient of c, or the part of dh that reaches the previous h past W_hh.
struct PersistentLstmBackward {
  static constexpr const char* kName = "lstm_bwd_persistent";
  static constexpr int kGates = 4;
  static constexpr bool kCell = true;     // is the state a gradient of c?
  static constexpr bool kDirect = false;  // is it part of the gradient of h?

  template <class T>
  static FRNN_DEVICE void step(const PersistentBackwardPart<T>& p, Nonlinearity, const RowAt& row, Index unit,
                               Index H, float dh, float& state, float (&recurrent)[kGates]) {
    const T* gates = p.gates + row.index() * 4 * H + unit;
    float dc = state;
    cells::lstm_output_backward(dh, widen(gates[3 * H]), p.cells[row.index() * H + unit], recurrent[3], dc);
    if (p.peephole) dc = cells::fma(widen(p.peephole[2 * H + unit]), recurrent[3], dc);
    cells::lstm_cell_backward(dc, widen(gates[0]), widen(gates[H]), widen(gates[2 * H]),
                              entered_cell(row, unit, H, p.cells, p.c0), recurrent[0], recurrent[1],
                              recurrent[2], state);
    if (p.peephole) {
      state = cells::fma(widen(p.peephole[unit]), recurrent[0], state);
      state = cells::fma(widen(p.peephole[H + unit]), recurrent[1], state);
    }
    FRNN_UNROLL
    for (int gate = 0; gate < kGates; ++gate) p.dg.store(row, gate * H + unit, recurrent[gate]);
  }
};

// Reset-after.
struct PersistentGruBackward {
  static constexpr const char* kName = "gru_bwd_persistent";
  static constexpr int kGates = 3;
  static constexpr bool kCell = false, kDirect = true;

  template <class T>
  static FRNN_DEVICE void step(const PersistentBackwardPart<T>& p, Nonlinearity, const RowAt& row, Index unit,
                               Index H, float dh, float& state, float (&recurrent)[kGates]) {
    const T* gates = p.gates + row.index() * 4 * H + unit;
    const float r = widen(gates[0]);
    float da_n;
    cells::gru_backward(dh, widen(gates[H]), widen(gates[2 * H]), widen(p.h_prev[row.index() * H + unit]),
                        recurrent[1], da_n, state);
    recurrent[0] = cells::gru_reset_backward(da_n, widen(gates[3 * H]), r);
    recurrent[2] = da_n * r;
    p.dg.store(row, unit, recurrent[2]);
    p.dg.store(row, H + unit, recurrent[0]);
    p.dg.store(row, 2 * H + unit, recurrent[1]);
    p.dg.store(row, 3 * H + unit, da_n);
  }
};

struct PersistentElmanBackward {
  static constexpr const char* kName = "elman_bwd_persistent";
  static constexpr int kGates = 1;
  static constexpr bool kCell = false, kDirect = false;

  template <class T>
  static FRNN_DEVICE void step(const PersistentBackwardPart<T>& p, Nonlinearity nonlinearity,
                               const RowAt& row, Index unit, Index, float dh, float&,
                               float (&recurrent)[kGates]) {
    recurrent[0] = cells::activate_backward(nonlinearity, dh, widen(p.y.at(row.time(), row.b)[unit]));
    p.dg.store(row, unit, recurrent[0]);
  }
};

template <class Cell, class T, class Tile_>
struct PersistentBackward {
  static constexpr const char* kName = Cell::kName;
  static constexpr int kThreads = kPersistentThreads;
  using Tile = Tile_;
  static constexpr int kGates = Cell::kGates;
  using Operand = typename Multiplied<T>::Operand;
  static constexpr int kPlanes = Multiplied<T>::kPlanes;
  using Four = Pack<float, 4>;

  struct Params {
    PersistentShape shape;
    Nonlinearity nonlinearity = Nonlinearity::tanh;
    PersistentBackwardPart<T> parts[2];
  };

  static FRNN_HOST_DEVICE constexpr ProductShape product(const PersistentShape& s) {
    constexpr int pair = 2 * kPiece;
    return ProductShape(s.padded(), ceil_div(kGates * s.units(), pair) * pair, s.columns, Tile::kTall);
  }
  // The parts of dh, [2][source rank][columns][units]: what a step adds for its units.
  static FRNN_HOST_DEVICE constexpr int parts(const PersistentShape& s) {
    return s.ranks > 1 ? s.ranks * s.columns * s.units() : 0;
  }

  // Bytes that a CTA receives in one step.
  static FRNN_HOST_DEVICE constexpr int exchanged(const PersistentShape& s) {
    return parts(s) * static_cast<int>(sizeof(float));
  }

  // One unit of h: its weights in all gates of the own units, of which there are `count`.
  struct WeightRow {
    const T* data;
    Index hidden;
    int units, count;
    FRNN_DEVICE WeightPiece<T> piece(int k) const {
      const int gate = k / units, unit = k % units;
      return {data + (gate * hidden + unit) * hidden, hidden, gate < kGates ? count - unit : 0};
    }
  };

  struct Layout : PersistentLayout<T, Tile> {
    Slot<Operand> dg;  // [planes][columns][gates of the own units]
    Slot<float> received;

    FRNN_HOST_DEVICE constexpr explicit Layout(const PersistentShape& s)
        : PersistentLayout<T, Tile>(s, product(s)) {
      dg = this->shared.template take<Operand>(product(s).vectors(kPlanes));
      received = this->shared.template take<float>(2 * parts(s));
    }
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const PersistentShape& s = p.shape;
    const ProductShape product_shape = product(s);
    const Layout layout(s);
    const PersistentPlace place(x, s);
    const PersistentBackwardPart<T>& part = p.parts[place.direction];
    const Walk& walk = part.walk;
    const int units = place.units, ranks = s.ranks;
    const int message = exchanged(s), buffer = parts(s);  // here, not in the loop, for the divisions in them
    const Index H = s.hidden;
    const int steps = static_cast<int>(walk.steps);

    const auto dg = x.view(layout.dg);
    const auto sums = x.view(layout.sums), received = x.view(layout.received), state = x.view(layout.state);
    const auto lengths = x.view(layout.lengths);
    const auto fours = x.view(Slot<Four>{layout.sums.offset, layout.sums.count / 4});  // the sums, too
    const auto rest = x.view(layout.rest);

    // ---- what stays

    const Exchange<X> exchange(x, x.view(layout.full), ranks);
    place.store_lengths(x, walk, lengths);
    for (int i = x.thread(); i < product_shape.vectors(kPlanes); i += kThreads) dg.store(i, Operand{});
    Weights<T, Tile, X> weights;
    weights.load(x, product_shape, rest, [&](int row) {
      const Index left = row < H && place.has_unit(0) ? H - place.first_unit : 0;
      return WeightRow{part.weight_hh + place.first_unit * H + row, H, units,
                       left < units ? static_cast<int>(left) : units};
    });
    x.sync();
    exchange.meet();
    const Elements quads(x.thread(), product_shape.rows / 4, s.columns);

    // ---- the steps

    FRNN_ROLLED
    for (int i = 0; i < steps; ++i) {
      const int step = steps - 1 - i;
      const bool last = step == 0;
      if (!last) exchange.expect(i + 1, message);
      if (i > 0) exchange.wait(i);
      place.each_there_is([&](int column, int unit) {
        float gradients[kGates] = {};
        step_of(
            p, part, RowAt(walk, place.row(column), step, lengths.load(column)), place.unit(unit),
            [&] {
              return ranks == 1 ? sum_in_order(sums, column * product_shape.sum_pitch() + unit,
                                               s.columns * product_shape.sum_pitch(), product_shape.across())
                                : sum_in_order(received, i % 2 * buffer + column * units + unit,
                                               s.columns * units, ranks);
            },
            state, column * units + unit, gradients);
        FRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate) {
          Operand planes[kPlanes];
          Multiplied<T>::split(narrow<T>(gradients[gate]), planes);
          FRNN_UNROLL
          for (int plane = 0; plane < kPlanes; ++plane) {
            dg.store((plane * s.columns + column) * product_shape.vector_pitch() + gate * units + unit,
                     planes[plane]);
          }
        }
      });
      if (last) break;
      x.sync();
      weights.multiply(x, product_shape, rest, dg, sums);
      x.sync();
      if (ranks > 1) {
        const auto to = received.from((i + 1) % 2 * buffer + place.rank * s.columns * units);
        send(units, quads, product_shape, fours, exchange, i + 1, to);
      }
    }
    if (steps > 0 && part.state) {
      place.each_there_is([&](int column, int unit) {
        if (lengths.load(column) == 0) return;
        part.state[place.row(column) * H + place.unit(unit)] = state.load(column * units + unit);
      });
    }
    exchange.meet();
  }

  // One unit of one row. `recurrent()` is the gradient of its h by way of the next step.
  template <class Recurrent, class State>
  static FRNN_DEVICE void step_of(const Params& p, const PersistentBackwardPart<T>& part, const RowAt& row,
                                  Index unit, Recurrent recurrent, const State& state, int own,
                                  float (&gradients)[kGates]) {
    const Index H = p.shape.hidden, at = row.b * H + unit;
    if (!row.active()) {
      part.dg.clear(row, unit, H);
      return;
    }
    float dh = part.dy ? widen(part.dy.at(row.time(), row.b)[unit]) : 0.0f, carried = 0;
    if (row.ends()) {
      if (part.dh_n) dh += widen(part.dh_n[at]);
      if (Cell::kCell && part.dc_n) carried = widen(part.dc_n[at]);
    } else if (row.goes_on()) {
      dh += recurrent();
      carried = state.load(own);
      if (Cell::kDirect) dh += carried;
    }
    Cell::step(part, p.nonlinearity, row, unit, H, dh, carried, gradients);
    state.store(own, carried);
  }

  // The product to the owners of its rows, `units` each; `quads` are this thread's fours of rows.
  template <class X, class Fours, class Shared>
  static FRNN_DEVICE void send(int units, const Elements& quads, const ProductShape& shape,
                               const Fours& fours, const Exchange<X>& exchange, int i, const Shared& to) {
    const int pitch = shape.sum_pitch() / 4;
    quads.each([&](int column, int quad) {
      Four sum = fours.load(column * pitch + quad);
      FRNN_ROLLED
      for (int j = 1; j < shape.across(); ++j) {
        const Four more = fours.load((j * shape.columns + column) * pitch + quad);
        FRNN_UNROLL
        for (int k = 0; k < 4; ++k) sum.value[k] += more.value[k];
      }
      const int row = 4 * quad, rank = row / units;
      exchange.send(to.from(column * units + row - rank * units), rank, sum, i);
    });
  }
};

}  // namespace fastrnn::cuda
