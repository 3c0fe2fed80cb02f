// LSTM, one step of the whole batch, after the products. Equations: cells/lstm.h.
//
// Forward: reads the sums and c, writes h, c, and in training the gates. The full peephole needs all of the
// new c for its output gate, so its step has two phases with a product between them. Backward: reads the
// gradient of h and what forward saved, writes dG (columns i f g o) and the gradient of the c that entered.
// Phases of the full peephole the other way round. Aliasing: gates may be the input sums (same element, read
// before it is written); nothing else overlaps.
#pragma once

#include <type_traits>

#include "cells/lstm.h"
#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

enum class LstmPhase {
  whole,
  cell,    // full peephole: i, f, g and c
  output,  // full peephole: o and h
};

// Calls body(constant): compiled for each phase, loads need not wait to see which it is. No switch, which
// would be a jump by way of a table.
template <class Body>
FRNN_DEVICE void with_phase(LstmPhase phase, Body body) {
  if (phase == LstmPhase::whole) return body(std::integral_constant<LstmPhase, LstmPhase::whole>{});
  if (phase == LstmPhase::cell) return body(std::integral_constant<LstmPhase, LstmPhase::cell>{});
  body(std::integral_constant<LstmPhase, LstmPhase::output>{});
}

template <class T>
struct LstmForward {
  static constexpr const char* kName = "lstm_fwd_step";
  static constexpr int kThreads = kPointwiseThreads;
  using A = Compute<T>;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;  // H
    LstmPhase phase = LstmPhase::whole;
    Sums<T> sums;
    A* state = nullptr;           // [B,H]: c that enters the step, then the next; of an ended row, its last
    Hidden<T> hidden;             // with a projection, empty
    T* projected = nullptr;       // [B,H]: h before its projection, or null
    const T* peephole = nullptr;  // diagonal: [3,H], i f o; or null
    T* gates = nullptr;           // reserve [T,B,4,H], null in inference
    A* cells = nullptr;           // reserve [T,B,H], null in inference
    // Full peephole. Its sums: in phase cell [B,2,H], of i and f with the c that entered; in phase output
    // [B,H], of o with the new c.
    const A* peephole_sums = nullptr;
    A* new_cells = nullptr;     // [B,H], from phase to phase
    T* cell_operand = nullptr;  // [B,H]: the c of the next product, rounded
    Noise noise;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_rows(
        x, p.walk, p.step, p.units,
        [&](const RowAt& row, Index unit) {
          with_phase(p.phase, [&](auto phase) { compute<phase.value>(p, row, unit); });
        },
        [&](const RowAt& row, Index unit) {
          if (p.hidden.y && p.phase != LstmPhase::cell) p.hidden.pad(row, unit);
        });
  }

  template <LstmPhase phase>
  static FRNN_DEVICE void compute(const Params& p, const RowAt& row, Index unit) {
    const Index H = p.units, at = row.b * H + unit;
    const auto save = [&](Index gate, A value) {
      if (p.gates) p.gates[(row.index() * 4 + gate) * H + unit] = narrow<T>(value);
    };
    const auto sums = p.sums.template load<4>(row, unit, H);
    const A c_prev = p.state[at];
    A c;
    if (phase != LstmPhase::output) {
      A a_i = sums.at(0), a_f = sums.at(1);
      if (p.peephole) {
        a_i = cells::fma(widen(p.peephole[unit]), c_prev, a_i);
        a_f = cells::fma(widen(p.peephole[H + unit]), c_prev, a_f);
      }
      if (phase == LstmPhase::cell) {
        a_i += p.peephole_sums[2 * row.b * H + unit];
        a_f += p.peephole_sums[(2 * row.b + 1) * H + unit];
      }
      const cells::LstmState<A> s = cells::lstm_cell(a_i, a_f, sums.at(2), c_prev);
      c = s.c;
      save(0, s.i);
      save(1, s.f);
      save(2, s.g);
      if (phase == LstmPhase::cell) {
        p.new_cells[at] = c;
        p.cell_operand[at] = narrow<T>(c);
        return;
      }
    } else {
      c = p.new_cells[at];
    }

    A a_o = sums.at(3);
    if (p.peephole) a_o = cells::fma(widen(p.peephole[2 * H + unit]), c, a_o);
    if (phase == LstmPhase::output) a_o += p.peephole_sums[at];
    const A o = cells::sigmoid(a_o), h = cells::lstm_hidden(o, c);
    save(3, o);
    if (p.projected) {
      p.projected[at] = narrow<T>(h);
    } else {
      p.hidden.store(row, unit, H, p.noise, h);
    }
    if (p.noise.zones_c) c = p.noise.zone_out(p.noise.c, row, unit, c_prev, c);
    if (p.cells) p.cells[row.index() * H + unit] = c;
    const A c_next = row.ends() || row.goes_on() ? c : A(0);
    p.state[at] = c_next;
    if (p.cell_operand) p.cell_operand[at] = narrow<T>(c_next);
  }
};

// The projected h of one step, from its product.
template <class T>
struct LstmProject {
  static constexpr const char* kName = "lstm_project_step";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;            // P
    const Compute<T>* product = nullptr;  // [B,P]
    Hidden<T> hidden;
    Noise noise;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_rows(
        x, p.walk, p.step, p.units,
        [&](const RowAt& row, Index unit) {
          p.hidden.store(row, unit, p.units, p.noise, p.product[row.b * p.units + unit]);
        },
        [&](const RowAt& row, Index unit) { p.hidden.pad(row, unit); });
  }
};

// Gradient of the projected h of one step; 0 for ended rows.
template <class T>
struct LstmProjectBackward {
  static constexpr const char* kName = "lstm_project_bwd_step";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;  // P
    Incoming<T> incoming;
    GradientRows<T> dp;
    Noise noise;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_rows(
        x, p.walk, p.step, p.units,
        [&](const RowAt& row, Index unit) {
          p.dp.store(row, unit, p.incoming.take(row, unit, p.units, p.noise));
        },
        [&](const RowAt& row, Index unit) { p.dp.clear(row, unit, p.units); });
  }
};

template <class T>
struct LstmBackward {
  static constexpr const char* kName = "lstm_bwd_step";
  static constexpr int kThreads = kPointwiseThreads;
  using A = Compute<T>;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;  // H
    LstmPhase phase = LstmPhase::whole;
    Incoming<T> incoming;
    const A* unprojected = nullptr;  // [B,H]: gradient of the unprojected h, in place of `incoming`; or null
    const T* gates = nullptr;        // reserve [T,B,4,H]
    const A* cells = nullptr;        // reserve [T,B,H]
    const T* c0 = nullptr;           // [B,H], or null = zeros
    const T* final_cell = nullptr;   // [B,H] dc_n, or null
    const T* peephole = nullptr;     // diagonal: [3,H], or null
    A* dc = nullptr;  // [B,H]: gradient of the c that leaves the step, then of the one that entered
    GradientRows<T> dg;
    // Full peephole. First phase output, then cell.
    A* new_dc = nullptr;                // [B,H], from phase to phase
    const A* output_product = nullptr;  // [B,H]: dG's o columns of this step times W_co
    const A* next_product = nullptr;    // [B,H]: dG's i f columns of the next step times W_ci W_cf
    Noise noise;
    A* new_cells = nullptr;  // [T,B,H], out: c before its zoneout; or null
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_rows(
        x, p.walk, p.step, p.units,
        [&](const RowAt& row, Index unit) {
          with_phase(p.phase, [&](auto phase) { compute<phase.value>(p, row, unit); });
        },
        [&](const RowAt& row, Index unit) { p.dg.clear(row, unit, p.units); });
  }

  template <LstmPhase phase>
  static FRNN_DEVICE void compute(const Params& p, const RowAt& row, Index unit) {
    const Index H = p.units, at = row.b * H + unit;
    // Everything that every phase reads, before anything is stored (Sums::load has the reason).
    const T* const saved = p.gates + row.index() * 4 * H + unit;
    const A i = widen(saved[0]), f = widen(saved[H]), g = widen(saved[2 * H]), o = widen(saved[3 * H]);
    const A c_prev = entered_cell(row, unit, H, p.cells, p.c0);
    A c = p.cells[row.index() * H + unit];
    A da_o = 0, dc = 0;
    A kept = 0;  // of the gradient of c, what zoneout takes to the c that entered
    if (phase != LstmPhase::cell || p.noise.zones_c) {
      if (row.ends()) {
        if (p.final_cell) dc = widen(p.final_cell[at]);
      } else if (row.goes_on()) {
        dc = p.dc[at];
        if (p.next_product) dc += p.next_product[at];
      }
      if (p.noise.zones_c) kept = p.noise.zone_out_backward(p.noise.c, row, unit, dc);
    }
    if (phase != LstmPhase::cell) {
      const A dh = p.unprojected ? p.unprojected[at] : p.incoming.take(row, unit, H, p.noise);
      if (p.noise.zones_c) {
        c = cells::lstm_new_cell(i, f, g, c_prev);
        if (p.new_cells) p.new_cells[row.index() * H + unit] = c;
      }
      cells::lstm_output_backward(dh, o, c, da_o, dc);
      p.dg.store(row, 3 * H + unit, da_o);
      if (phase == LstmPhase::output) {
        p.new_dc[at] = dc;
        return;
      }
      if (p.peephole) dc = cells::fma(widen(p.peephole[2 * H + unit]), da_o, dc);
    } else {
      dc = p.new_dc[at] + p.output_product[at];
    }

    A da_i, da_f, da_g, dc_prev;
    cells::lstm_cell_backward(dc, i, f, g, c_prev, da_i, da_f, da_g, dc_prev);
    if (p.peephole) {
      dc_prev = cells::fma(widen(p.peephole[unit]), da_i, dc_prev);
      dc_prev = cells::fma(widen(p.peephole[H + unit]), da_f, dc_prev);
    }
    p.dc[at] = p.noise.zones_c ? dc_prev + kept : dc_prev;
    p.dg.store(row, unit, da_i);
    p.dg.store(row, H + unit, da_f);
    p.dg.store(row, 2 * H + unit, da_g);
  }
};

// h before its projection again, for all times: hidden [T,B,H] = o tanh(c), 0 at padding.
template <class T>
struct LstmHidden {
  static constexpr const char* kName = "lstm_hidden";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index units = 0;
    const T* gates = nullptr;
    const Compute<T>* cells = nullptr;
    T* hidden = nullptr;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const Index H = p.units;
    for_times(x, p.walk.steps, p.walk.batch, H, [&](Index t, Index b, Index unit) {
      const Index i = t * p.walk.batch + b, at = i * H + unit;
      p.hidden[at] =
          t < p.walk.length(b)
              ? narrow<T>(cells::lstm_hidden(widen(p.gates[i * 4 * H + 3 * H + unit]), p.cells[at]))
              : narrow<T>(0);
    });
  }
};

}  // namespace fastrnn::cuda
