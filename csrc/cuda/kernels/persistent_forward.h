// All steps of a layer, forward, with the weights on the chip (persistent.h). z = W_hh h for the units of a
// rank: rows of A are [gate][unit], its columns all units. Every rank has all of h in shared memory, twice.
//
// Step t:
//   1. expect h_{t+1}, of all ranks, in buffer (t+1) % 2
//   2. wait for h_t in buffer t % 2; h_0 every rank has loaded
//   3. multiply; sync(), after which nobody in the CTA reads h_t any more
//   4. gates and state of the own units; send h_{t+1} to all ranks, this one too
// The arrival of the data is the barrier. Two buffers are enough: a peer sends h_{t+2} into the buffer of h_t
// after it has received our part of h_{t+1}, which we sent after 3. One array of sums is enough: a warp goes
// on to the next step when all of h is there, so when every thread of its CTA has sent, and read its sums.
// The last step neither expects nor sends, and the cluster meets once more before anyone leaves. One CTA by
// itself has a second sync() in place of 1, 2 and the sending.
//
// h is sent as it enters the next step: zeros where that begins a piece, and at rows that have ended.
#pragma once

#include <cstring>

#include "cells/elman.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cuda/kernels/persistent.h"

namespace fastrnn::cuda {

// The sums of one unit of one row, as they lie in shared memory.
template <int gates, class Shared>
struct PersistentSums {
  const Shared& input;     // [G][columns][units], without bias
  const Shared& bias;      // [2][G][units]: b_ih, b_hh
  const Shared& peephole;  // [3][units]
  int units, columns, column, unit;
  float recurrent[gates];

  // `sums` are ProductShape's. All gates in one loop, so that their loads wait together.
  FRNN_DEVICE PersistentSums(const Shared& input_, const Shared& sums, const Shared& bias_,
                             const Shared& peephole_, const ProductShape& product, int units_, int column_,
                             int unit_)
      : input(input_),
        bias(bias_),
        peephole(peephole_),
        units(units_),
        columns(product.columns),
        column(column_),
        unit(unit_) {
    const int first = column * product.sum_pitch() + unit;
    FRNN_UNROLL
    for (int gate = 0; gate < gates; ++gate) recurrent[gate] = sums.load(first + gate * units);
    FRNN_ROLLED
    for (int i = 1; i < product.across(); ++i) {
      FRNN_UNROLL
      for (int gate = 0; gate < gates; ++gate) {
        recurrent[gate] += sums.load(first + gate * units + i * columns * product.sum_pitch());
      }
    }
  }

  FRNN_DEVICE float input_at(int gate) const { return input.load((gate * columns + column) * units + unit); }
  FRNN_DEVICE float bias_at(int which, int gate) const {
    return bias.load((which * gates + gate) * units + unit);
  }
  FRNN_DEVICE float at(int gate) const {
    return input_at(gate) + recurrent[gate] + (bias_at(0, gate) + bias_at(1, gate));
  }
  FRNN_DEVICE float peephole_at(int gate) const { return peephole.load(gate * units + unit); }
};

// A cell: what one unit of one row computes of its sums in step(). It returns h, updates the state that only
// this unit needs, and fills `saved` as the kernels of a single step save it for backward.
struct PersistentLstm {
  static constexpr const char* kName = "lstm_fwd_persistent";
  static constexpr int kGates = 4, kSaved = 4;
  static constexpr bool kCell = true;  // is there a c? It is the state then.

  template <class T, class Sums>
  static FRNN_DEVICE float step(const Sums& sums, Nonlinearity, bool peephole, float& state,
                                float (&saved)[kSaved]) {
    float a_i = sums.at(0), a_f = sums.at(1), a_o = sums.at(3);
    if (peephole) {
      a_i = cells::fma(sums.peephole_at(0), state, a_i);
      a_f = cells::fma(sums.peephole_at(1), state, a_f);
    }
    const cells::LstmState<float> s = cells::lstm_cell(a_i, a_f, sums.at(2), state);
    if (peephole) a_o = cells::fma(sums.peephole_at(2), s.c, a_o);
    const float o = cells::sigmoid(a_o);
    saved[0] = s.i;
    saved[1] = s.f;
    saved[2] = s.g;
    saved[3] = o;
    state = s.c;
    return cells::lstm_hidden(o, s.c);
  }
};

// Reset-after.
struct PersistentGru {
  static constexpr const char* kName = "gru_fwd_persistent";
  static constexpr int kGates = 3, kSaved = 4;
  static constexpr bool kCell = false;

  // The state is h.
  template <class T, class Sums>
  static FRNN_DEVICE float step(const Sums& sums, Nonlinearity, bool, float& state, float (&saved)[kSaved]) {
    const float r = cells::sigmoid(sums.at(0)), z = cells::sigmoid(sums.at(1));
    const float q = sums.recurrent[2] + sums.bias_at(1, 2);
    const float n = cells::gru_candidate_after(sums.input_at(2) + sums.bias_at(0, 2), r, q);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = q;
    const float h = cells::gru_hidden(z, n, state);
    state = widen(narrow<T>(h));
    return h;
  }
};

struct PersistentElman {
  static constexpr const char* kName = "elman_fwd_persistent";
  static constexpr int kGates = 1, kSaved = 0;
  static constexpr bool kCell = false;

  template <class T, class Sums>
  static FRNN_DEVICE float step(const Sums& sums, Nonlinearity nonlinearity, bool, float&, float (&)[1]) {
    return cells::activate(nonlinearity, sums.at(0));
  }
};

// One direction of a layer.
template <class T>
struct PersistentForwardPart {
  Walk walk;
  const T* weight_hh = nullptr;  // [G,H,H]
  const T* bias_ih = nullptr;    // [G,H], or null
  const T* bias_hh = nullptr;
  const T* peephole = nullptr;   // [3,H], or null
  const float* input = nullptr;  // W_ih x: [T,B] rows of [G,H], input_stride apart; may be the gates
  Index input_stride = 0;
  Rows<T> y;
  T* h = nullptr;          // [B,H]: the state that enters the first step, then the final one
  float* c = nullptr;      // the same, LSTM
  T* gates = nullptr;      // reserve [T,B,saved,H], null in inference
  float* cells = nullptr;  // reserve [T,B,H], LSTM
};

template <class Cell, class T, class Tile_>
struct PersistentForward {
  static constexpr const char* kName = Cell::kName;
  static constexpr int kThreads = kPersistentThreads;
  using Tile = Tile_;
  static constexpr int kGates = Cell::kGates;
  using Operand = typename Multiplied<T>::Operand;
  static constexpr int kPlanes = Multiplied<T>::kPlanes;
  static constexpr int kSaved = Cell::kSaved > 0 ? Cell::kSaved : 1;
  using Eight = Pack<Operand, 8>;

  struct Params {
    PersistentShape shape;
    Nonlinearity nonlinearity = Nonlinearity::tanh;
    PersistentForwardPart<T> parts[2];
  };

  static FRNN_HOST_DEVICE constexpr ProductShape product(const PersistentShape& s) {
    return ProductShape(kGates * s.units(), s.padded(), s.columns, Tile::kTall);
  }

  // Bytes that a CTA receives in one step.
  static FRNN_HOST_DEVICE constexpr int exchanged(const PersistentShape& s) {
    return kPlanes * s.columns * s.padded() * static_cast<int>(sizeof(Operand));
  }

  // One gate of one unit: `count` weights.
  struct WeightRow {
    const T* data;
    int count;
    FRNN_DEVICE WeightPiece<T> piece(int k) const { return {data + k, 1, count - k}; }
  };

  struct Layout : PersistentLayout<T, Tile> {
    Slot<Operand> h;  // [2][planes][columns][units of all ranks + 8]
    Slot<float> input, bias, peephole;
    Slot<int> goes_on;  // [2][columns]: at the steps of either parity

    FRNN_HOST_DEVICE constexpr explicit Layout(const PersistentShape& s)
        : PersistentLayout<T, Tile>(s, product(s)) {
      SharedLayout& all = this->shared;
      h = all.take<Operand>(2 * product(s).vectors(kPlanes));
      input = all.take<float>(kGates * s.units() * s.columns);
      bias = all.take<float>(2 * kGates * s.units());
      peephole = all.take<float>(3 * s.units());
      goes_on = all.take<int>(2 * s.columns);
    }
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const PersistentShape& s = p.shape;
    const ProductShape product_shape = product(s);
    const Layout layout(s);
    const PersistentPlace place(x, s);
    const PersistentForwardPart<T>& part = p.parts[place.direction];
    const Walk& walk = part.walk;
    const int units = place.units, ranks = s.ranks;
    const int message = exchanged(s);  // here, not in the loop, for the division in it
    const Index H = s.hidden;
    const int steps = static_cast<int>(walk.steps);

    const auto sums = x.view(layout.sums), input = x.view(layout.input), state = x.view(layout.state),
               bias = x.view(layout.bias), peephole = x.view(layout.peephole);
    const auto lengths = x.view(layout.lengths), goes_on = x.view(layout.goes_on);
    const auto rest = x.view(layout.rest);
    const auto h = x.view(layout.h);
    const auto buffer = [&](int t) { return h.from(t % 2 * product_shape.vectors(kPlanes)); };
    const auto row_at = [&](int column, Index step) {
      return RowAt(walk, place.row(column), step, lengths.load(column));
    };

    // ---- what stays

    const Exchange<X> exchange(x, x.view(layout.full), ranks);
    place.store_lengths(x, walk, lengths);
    if (walk.reset) {
      for (int i = x.thread(); i < s.columns; i += kThreads) {
        const Index row = place.row(i);
        goes_on.store(i, place.has_row(i) && walk.length(row) > 0 && RowAt(walk, row, 0).goes_on());
      }
    }
    load_gates(x, place, part.bias_ih, kGates, bias);
    load_gates(x, place, part.bias_hh, kGates, bias.from(kGates * units));
    load_gates(x, place, part.peephole, 3, peephole);
    for (int i = x.thread(); i < s.columns * s.padded(); i += kThreads) {
      const int column = i / s.padded(), unit = i % s.padded();
      store(x, product_shape, buffer(0), column, unit,
            place.has_row(column) && unit < H ? part.h[place.row(column) * H + unit] : T{});
    }
    place.each_there_is([&](int column, int unit) {
      const Index at = place.row(column) * H + place.unit(unit);
      state.store(column * units + unit, Cell::kCell ? part.c[at] : widen(part.h[at]));
    });
    Weights<T, Tile, X> weights;
    weights.load(x, product_shape, rest, [&](int row) {
      return WeightRow{part.weight_hh + (row / units * H + place.unit(row % units)) * H,
                       place.has_unit(row % units) ? s.hidden : 0};
    });
    // The input sums of a step arrive during the step before; each thread waits for, and reads, its own.
    const auto fetch = [&](Index step) {
      place.own.each([&](int column, int unit) {
        if (!place.has_unit(unit) || lengths.load(column) <= step) return;
        const float* from = part.input + row_at(column, step).index() * part.input_stride + place.unit(unit);
        FRNN_UNROLL
        for (int gate = 0; gate < kGates; ++gate) {
          x.cp_async_4(input.from((gate * s.columns + column) * units + unit), from + gate * H);
        }
      });
      x.cp_async_commit();
    };
    x.sync();
    exchange.meet();
    fetch(0);

    // ---- the steps

    FRNN_ROLLED
    for (int t = 0; t < steps; ++t) {
      const bool last = t + 1 == steps;
      if (!last) exchange.expect(t + 1, message);
      if (t > 0) exchange.wait(t);
      weights.multiply(x, product_shape, rest, buffer(t), sums);
      x.sync();
      x.cp_async_wait(0);
      place.own.each([&](int column, int unit) {
        T next = {};
        if (place.has_row(column) && place.has_unit(unit)) {
          next = step_of(p, part, row_at(column, t), place.unit(unit),
                         !walk.reset || goes_on.load(t % 2 * s.columns + column),
                         PersistentSums<kGates, decltype(sums)>(input, sums, bias, peephole, product_shape,
                                                                units, column, unit),
                         state, column * units + unit);
        }
        if (last) return;
        if (ranks == 1) {
          store(x, product_shape, buffer(t + 1), column, unit, next);
        } else {
          send(x, product_shape, ranks, exchange, t + 1, buffer(t + 1), column, place.rank * units + unit,
               next);
        }
      });
      if (last) break;
      fetch(t + 1);
      if (walk.reset) {  // which lies in memory: a step ahead
        for (int i = x.thread(); i < s.columns; i += kThreads) {
          goes_on.store((t + 1) % 2 * s.columns + i, lengths.load(i) > t + 1 && row_at(i, t + 1).goes_on());
        }
      }
      if (ranks == 1) x.sync();
    }
    exchange.meet();
  }

  // The own units of an array [gates][H], zeros past H, or if there is none.
  template <class X, class Shared>
  static FRNN_DEVICE void load_gates(const X& x, const PersistentPlace& place, const T* from, int gates,
                                     const Shared& to) {
    for (int i = x.thread(); i < gates * place.units; i += kThreads) {
      const int gate = i / place.units, unit = i % place.units;
      to.store(i, from && place.has_unit(unit) ? widen(from[gate * place.hidden + place.unit(unit)]) : 0.0f);
    }
  }

  // One unit of one row: writes what goes to memory, and returns the h that enters the next step.
  template <class Sums, class State>
  static FRNN_DEVICE T step_of(const Params& p, const PersistentForwardPart<T>& part, const RowAt& row,
                               Index unit, bool goes_on, const Sums& sums, const State& state, int own) {
    const Index H = p.shape.hidden;
    T* const y = part.y.at(row.time(), row.b) + unit;
    if (!row.active()) {
      *y = T{};
      return T{};
    }
    float saved[kSaved], carried = state.load(own);
    const T h =
        narrow<T>(Cell::template step<T>(sums, p.nonlinearity, part.peephole != nullptr, carried, saved));
    *y = h;
    if (part.gates) {
      FRNN_UNROLL
      for (int i = 0; i < Cell::kSaved; ++i) {
        part.gates[(row.index() * Cell::kSaved + i) * H + unit] = narrow<T>(saved[i]);
      }
    }
    if (part.cells) part.cells[row.index() * H + unit] = carried;
    if (row.ends()) {
      part.h[row.b * H + unit] = h;
      if (Cell::kCell) part.c[row.b * H + unit] = carried;
    }
    const bool stays = !row.ends() && goes_on;
    state.store(own, stays ? carried : 0.0f);
    return stays ? h : T{};
  }

  // h of a unit of all ranks, in this CTA.
  template <class X, class Shared>
  static FRNN_DEVICE void store(X&, const ProductShape& shape, const Shared& to, int column, int unit, T h) {
    Operand planes[kPlanes];
    Multiplied<T>::split(h, planes);
    FRNN_UNROLL
    for (int plane = 0; plane < kPlanes; ++plane) {
      to.store((plane * shape.columns + column) * shape.vector_pitch() + unit, planes[plane]);
    }
  }

  // The same in every CTA of the cluster. Eight lanes collect their eight units; each sends them to every
  // eighth rank.
  template <class X, class Shared>
  static FRNN_DEVICE void send(X& x, const ProductShape& shape, int ranks, const Exchange<X>& exchange, int t,
                               const Shared& to, int column, int unit, T h) {
    Operand planes[kPlanes];
    Multiplied<T>::split(h, planes);
    FRNN_UNROLL
    for (int plane = 0; plane < kPlanes; ++plane) {
      const Eight eight = collect(x, planes[plane]);
      const auto place = to.from((plane * shape.columns + column) * shape.vector_pitch() + unit / 8 * 8);
      x.sync_warp();  // what other lanes have read was read before this is sent
      FRNN_ROLLED
      for (int r = x.lane() % 8; r < ranks; r += 8) {
        exchange.send(place, r, eight, t);
      }
    }
  }

  // The values of eight lanes, in each of them.
  template <class X>
  static FRNN_DEVICE Eight collect(X& x, Operand value) {
    const auto pair = [&](std::uint32_t mine, int lanes, std::uint32_t& low, std::uint32_t& high) {
      const std::uint32_t other = x.shuffle_xor(mine, lanes);
      const bool upper = x.lane() & lanes;
      low = upper ? other : mine;
      high = upper ? mine : other;
    };
    std::uint32_t low, high, word[2], all[4];
    pair(value.bits, 1, low, high);
    pair(low | high << 16, 2, word[0], word[1]);
    pair(word[0], 4, all[0], all[2]);
    pair(word[1], 4, all[1], all[3]);
    Eight eight;
    std::memcpy(&eight, all, sizeof eight);
    return eight;
  }
};

}  // namespace fastrnn::cuda
