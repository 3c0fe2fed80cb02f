// One step of one layer of a stream in one kernel: the products with x and h, the gates, and the state in
// place.
//
// For few rows, where a step is bound by reading the weights: the warp of a unit reads its rows of W_ih and
// W_hh once for one row of the batch, or for up to 8. Cells: LSTM without or with a diagonal peephole, GRU
// reset-after, Elman; no projection.
//
// Four sums a unit, from rows of the weights that the tables below name, none for -1:
//              LSTM             GRU                Elman
//   W_ih x     a_i a_f a_g a_o  a_r a_z a_n  -     a
//   W_hh h     a_i a_f a_g a_o  a_r a_z  -   q     a
//
// Every CTA reads all of h, so none may write it before all have read it. New values go to y. Each CTA then
// takes a ticket, and the one that finds that all others have theirs copies y into the state and puts the
// ticket back to 0. c is read and written by the one warp that has the unit.
#pragma once

#include "cells/elman.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/zoneout.h"
#include "core/half.h"
#include "cuda/kernels/walk.h"

namespace fastrnn::cuda {

template <class T>
struct StreamStep {
  static constexpr const char* kName = "stream_step";
  static constexpr int kThreads = 128;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kSums = 4;
  static constexpr int kRows = 8;  // of the batch at a time: no more sums fit the registers in double
  using A = Compute<T>;

  struct Params {
    Cell cell = Cell::lstm;
    Nonlinearity nonlinearity = Nonlinearity::tanh;
    Index units = 0, input = 0;            // H, I
    Index count = 0;                       // rows of x and y
    StateRows rows;                        // of h and c
    const T* x = nullptr;                  // [count,I], or
    const std::int64_t* tokens = nullptr;  // [count]
    const T* weight_ih = nullptr;          // (G*H, I)
    const T* weight_hh = nullptr;          // (G*H, H)
    const T* bias_ih = nullptr;            // (G*H), or null
    const T* bias_hh = nullptr;
    const T* peephole = nullptr;      // (3*H) i f o, or null
    T* h = nullptr;                   // [N,H], in and out
    A* c = nullptr;                   // [N,H], in and out, LSTM
    T* y = nullptr;                   // [count,H], out; not h, not x
    std::uint32_t* ticket = nullptr;  // 0 before and after
    A keep_h = 0, keep_c = 0;         // zoneout by its expectation: the parts of h and c that stay
  };

  struct Layout {
    SharedLayout shared;
    Slot<std::uint32_t> ticket = shared.take<std::uint32_t>(1);
  };
  static Index ctas(Index units) { return ceil_div(units, kWarps); }

  // Which gate's rows of W_ih and of W_hh sum i takes.
  static FRNN_DEVICE int input_gate(Cell cell, int i) {
    return cell == Cell::lstm || i == 0 || (cell == Cell::gru && i < 3) ? i : -1;
  }
  static FRNN_DEVICE int hidden_gate(Cell cell, int i) {
    if (cell == Cell::gru) return i == 2 ? -1 : i == 3 ? 2 : i;
    return cell == Cell::lstm || i == 0 ? i : -1;
  }

  // sums[i][j] += this lane's part of the dot product of the unit's row of weights for sum i and row from(j).
  template <int rows, class X, class From>
  static FRNN_DEVICE void multiply(X& x, const Params& p, const T* weight, Index depth, bool hidden,
                                   Index unit, int n, From from, A (&sums)[kSums][rows]) {
    for (Index k = x.lane(); k < depth; k += kWarp) {
      A v[rows];
      FRNN_UNROLL
      for (int j = 0; j < rows; ++j) v[j] = j < n ? widen(from(j)[k]) : A(0);
      FRNN_UNROLL
      for (int i = 0; i < kSums; ++i) {
        const int gate = hidden ? hidden_gate(p.cell, i) : input_gate(p.cell, i);
        if (gate < 0) continue;
        const A w = widen(weight[(gate * p.units + unit) * depth + k]);
        FRNN_UNROLL
        for (int j = 0; j < rows; ++j) sums[i][j] = cells::fma(w, v[j], sums[i][j]);
      }
    }
  }

  // One unit of the rows first, ..., first + n - 1, of at most `rows`.
  template <int rows, class X>
  static FRNN_DEVICE void compute(X& x, const Params& p, Index unit, Index first, int n) {
    A sums[kSums][rows] = {};
    if (!p.tokens) {
      const auto row_of_x = [&](int j) { return p.x + (first + j) * p.input; };
      multiply(x, p, p.weight_ih, p.input, false, unit, n, row_of_x, sums);
    }
    const auto row_of_h = [&](int j) { return p.h + p.rows.at(first + j) * p.units; };
    multiply(x, p, p.weight_hh, p.units, true, unit, n, row_of_h, sums);

    // Lane j gets the four sums of row j.
    A mine[kSums] = {};
    FRNN_UNROLL
    for (int i = 0; i < kSums; ++i) {
      FRNN_UNROLL
      for (int j = 0; j < rows; ++j) {
        A sum = sums[i][j];
        FRNN_UNROLL
        for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += x.shuffle_xor(sum, mask);
        if (x.lane() == j) mine[i] = sum;
      }
    }
    if (x.lane() < n) finish(x, p, unit, first + x.lane(), mine);
  }

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const Index unit = Index{x.block()} * kWarps + x.warp(), H = p.units;
    if (unit < H) {
      if (p.count == 1) {
        compute<1>(x, p, unit, 0, 1);
      } else {
        for (Index first = 0; first < p.count; first += kRows) {
          compute<kRows>(x, p, unit, first,
                         p.count - first < kRows ? static_cast<int>(p.count - first) : kRows);
        }
      }
    }
    x.sync();
    if (!is_last(x, p)) return;
    for (Index row = 0; row < p.count; ++row) {
      T* h = p.h + p.rows.at(row) * H;
      for (Index i = x.thread(); i < H; i += kThreads) h[i] = x.load_coherent(p.y + row * H + i);
    }
    if (x.thread() == 0) *p.ticket = 0;
  }

  // Gates and state of one unit of one row, from its sums.
  template <class X>
  static FRNN_DEVICE void finish(X& x, const Params& p, Index unit, Index row, A (&sums)[kSums]) {
    const Index H = p.units, state = p.rows.at(row) * H + unit;
    const Index token = p.tokens ? clamp(p.tokens[row], 0, p.input - 1) : 0;
    FRNN_UNROLL
    for (int i = 0; i < kSums; ++i) {
      const int in = input_gate(p.cell, i), hidden = hidden_gate(p.cell, i);
      if (p.tokens && in >= 0) sums[i] += widen(p.weight_ih[(in * H + unit) * p.input + token]);
      if (p.bias_ih && in >= 0) sums[i] += widen(p.bias_ih[in * H + unit]);
      if (p.bias_hh && hidden >= 0) sums[i] += widen(p.bias_hh[hidden * H + unit]);
    }
    A h = 0;
    switch (p.cell) {
      case Cell::lstm: {
        const A c_prev = p.c[state];
        if (p.peephole) {
          sums[0] = cells::fma(widen(p.peephole[unit]), c_prev, sums[0]);
          sums[1] = cells::fma(widen(p.peephole[H + unit]), c_prev, sums[1]);
        }
        const A c = cells::lstm_cell(sums[0], sums[1], sums[2], c_prev).c;
        if (p.peephole) sums[3] = cells::fma(widen(p.peephole[2 * H + unit]), c, sums[3]);
        p.c[state] = p.keep_c > 0 ? cells::zoneout(p.keep_c, c_prev, c) : c;
        h = cells::lstm_hidden(cells::sigmoid(sums[3]), c);
        break;
      }
      case Cell::gru: {
        const A r = cells::sigmoid(sums[0]), z = cells::sigmoid(sums[1]);
        h = cells::gru_hidden(z, cells::gru_candidate_after(sums[2], r, sums[3]), widen(p.h[state]));
        break;
      }
      case Cell::rnn: h = cells::activate(p.nonlinearity, sums[0]); break;
    }
    if (p.keep_h > 0) h = cells::zoneout(p.keep_h, widen(p.h[state]), h);
    x.store_coherent(p.y + row * H + unit, narrow<T>(h));
  }

  // Do all other CTAs have their tickets? True in one CTA, which then sees all that they have written.
  template <class X>
  static FRNN_DEVICE bool is_last(X& x, const Params& p) {
    const auto ticket = x.view(Layout().ticket);
    if (x.thread() == 0) ticket.store(0, x.fetch_add(p.ticket, 1));
    x.sync();
    return ticket.load(0) + 1 == static_cast<std::uint32_t>(x.blocks());
  }
};

}  // namespace fastrnn::cuda
