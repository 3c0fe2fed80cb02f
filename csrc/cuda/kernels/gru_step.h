// GRU, one step of the whole batch, after the products. Equations: cells/gru.h.
//
// Reset-after is one phase. Reset-before has two, with a product between them: forward, W_hn (r h) for the
// candidate; backward, the candidate's gradient times W_hn for r. Saved for backward: r z n, and for
// reset-after q = W_hn h + b_hn, which is at hand here and would cost a product over all steps to compute
// again. dG's columns: n' r z n (reset-after; n' belongs to q), r z n (reset-before). Aliasing: gates may be
// the input sums (an element is read in the last phase before it is written there).
#pragma once

#include <type_traits>

#include "cells/gru.h"
#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

enum class GruPhase {
  whole,      // reset-after
  reset,      // reset-before, forward: r h; backward: da_r, from the product
  candidate,  // reset-before, forward: n and h; backward: da_z and da_n
};

// Calls body(constant): compiled for each phase, loads need not wait to see which it is. No switch, which
// would be a jump by way of a table.
template <class Body>
FRNN_DEVICE void with_phase(GruPhase phase, Body body) {
  if (phase == GruPhase::whole) return body(std::integral_constant<GruPhase, GruPhase::whole>{});
  if (phase == GruPhase::reset) return body(std::integral_constant<GruPhase, GruPhase::reset>{});
  body(std::integral_constant<GruPhase, GruPhase::candidate>{});
}

template <class T>
struct GruForward {
  static constexpr const char* kName = "gru_fwd_step";
  static constexpr int kThreads = kPointwiseThreads;
  using A = Compute<T>;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;  // H
    GruPhase phase = GruPhase::whole;
    Sums<T> sums;          // recurrent: r z q; reset-before: r z, then W_hn (r h)
    Hidden<T> hidden;      // its state is also the h that enters
    T* reset_h = nullptr;  // [B,H] r h, reset-before
    T* gates = nullptr;    // reserve [T,B,saved_gates,H], null in inference
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
          if (p.phase != GruPhase::reset) p.hidden.pad(row, unit);
        });
  }

  template <GruPhase phase>
  static FRNN_DEVICE void compute(const Params& p, const RowAt& row, Index unit) {
    const Index H = p.units, at = row.b * H + unit;
    const A h_prev = widen(p.hidden.state[at]);
    const auto sums = p.sums.template load<3>(row, unit, H);
    const A r = cells::sigmoid(sums.at(0));
    if (phase == GruPhase::reset) {
      p.reset_h[at] = narrow<T>(r * p.noise.masked(row.b, unit, h_prev));
      return;
    }
    const A z = cells::sigmoid(sums.at(1));
    A n, q = 0;
    if (phase == GruPhase::whole) {
      q = sums.recurrent[2] + sums.bias_hh[2];
      n = cells::gru_candidate_after(sums.input[2] + sums.bias_ih[2], r, q);
    } else {
      n = cells::tanh(sums.at(2));
    }
    if (p.gates) {
      const Index saved = phase == GruPhase::whole ? 4 : 3;
      T* gates = p.gates + row.index() * saved * H + unit;
      gates[0] = narrow<T>(r);
      gates[H] = narrow<T>(z);
      gates[2 * H] = narrow<T>(n);
      if (phase == GruPhase::whole) gates[3 * H] = narrow<T>(q);
    }
    p.hidden.store(row, unit, H, p.noise, cells::gru_hidden(z, n, h_prev));
  }
};

template <class T>
struct GruBackward {
  static constexpr const char* kName = "gru_bwd_step";
  static constexpr int kThreads = kPointwiseThreads;
  using A = Compute<T>;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;  // H
    GruPhase phase = GruPhase::whole;
    Incoming<T> incoming;
    const T* gates = nullptr;    // reserve
    const T* h_prev = nullptr;   // [T,B,H], as each step saw it
    const A* product = nullptr;  // [B,H], phase reset: da_n times W_hn, the gradient of r h
    GradientRows<T> dg;
    Noise noise;
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

  template <GruPhase phase>
  static FRNN_DEVICE void compute(const Params& p, const RowAt& row, Index unit) {
    const Index H = p.units, at = row.b * H + unit;
    const bool after = phase == GruPhase::whole;
    // Everything that every phase reads, before anything is stored (Sums::load has the reason).
    const T* const gates = p.gates + row.index() * (after ? 4 : 3) * H + unit;
    const A r = widen(gates[0]), z = widen(gates[H]), n = widen(gates[2 * H]),
            q = after ? widen(gates[3 * H]) : A(0), h_prev = widen(p.h_prev[row.index() * H + unit]);
    if (phase == GruPhase::reset) {
      const A d_product = p.product[at];
      A& carry = p.incoming.carry[at];
      p.dg.store(row, unit, cells::gru_reset_backward(d_product, p.noise.masked(row.b, unit, h_prev), r));
      carry = cells::fma(p.noise.masked(row.b, unit, d_product), r, carry);
      return;
    }
    A da_z, da_n, dh_prev;
    cells::gru_backward(p.incoming.take(row, unit, H, p.noise), z, n, h_prev, da_z, da_n, dh_prev);
    p.incoming.leave(at, p.noise, dh_prev);
    if (after) {
      p.dg.store(row, unit, da_n * r);
      p.dg.store(row, H + unit, cells::gru_reset_backward(da_n, q, r));
      p.dg.store(row, 2 * H + unit, da_z);
      p.dg.store(row, 3 * H + unit, da_n);
    } else {
      p.dg.store(row, H + unit, da_z);
      p.dg.store(row, 2 * H + unit, da_n);
    }
  }
};

// h_prev [T,B,H] to r h for all times, in place.
template <class T>
struct GruResetHidden {
  static constexpr const char* kName = "gru_reset_hidden";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index units = 0;
    const T* gates = nullptr;  // reserve [T,B,3,H]
    T* h_prev = nullptr;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_times(x, p.walk.steps, p.walk.batch, p.units, [&](Index t, Index b, Index unit) {
      const Index i = t * p.walk.batch + b;
      T& h = p.h_prev[i * p.units + unit];
      // At padding h_prev is 0 already, and the reserve was never written.
      if (t < p.walk.length(b)) h = narrow<T>(widen(p.gates[3 * i * p.units + unit]) * widen(h));
    });
  }
};

}  // namespace fastrnn::cuda
