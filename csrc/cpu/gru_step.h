// GRU kernels: one step, forward and backward.  Equations: cells/gru.h; arguments: kernels.h.
#pragma once

#include "cells/gru.h"
#include "cpu/product.h"

namespace fastrnn::cpu::FRNN_ISA {

// Reset-after.  Sums in z: q r z n.  The candidate's q = W_hn h + b_hn stays apart from its W_in x + b_in,
// because r multiplies q alone: W_hh gives q r z and W_ih gives r z n.
template <class W>
void gru_forward(const StepForward<W>& p) {
  using T = Compute<W>;
  using V = Vec<T>;
  const Index H = p.units;
  const auto input = input_sums(p, 3);
  for_tiles<3, T>(
      p.rows, p.panels, H,
      [&](Index row, Index unit, auto n, T* z) {
        put(z, 0, p.candidate_bias ? load(p.candidate_bias + unit, n) : V(T(0)));
        input(row, unit, n, z + V::lanes);
      },
      [&](TileAt tile, T* z) {
        if (!p.pre) multiply<3>(p.input, tile, z + V::lanes);
        multiply<3>(p.recurrent, tile, z);
      },
      [](Index, Index, auto, T* z) {
        put(z, 1, cells::sigmoid(at(z, 1)));
        put(z, 2, cells::sigmoid(at(z, 2)));
      },
      // The candidates of all rows after the gates of all rows: one row's would wait for its own r.
      [&](Index row, Index unit, auto n, T* z) {
        const V r = at(z, 1), update = at(z, 2);
        const V candidate = cells::gru_candidate_after(at(z, 3), r, at(z, 0));
        store(p.h[row] + unit, cells::gru_hidden(update, candidate, load(p.h_prev[row] + unit, n)), n);
        if (p.gates) {
          T* gates = p.gates[row] + unit;
          store(gates, r, n);
          store(gates + H, update, n);
          store(gates + 2 * H, candidate, n);
        }
      });
}

template <class W>
void gru_forward_reset(const StepForward<W>& p) {
  using T = Compute<W>;
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<2, T>(
      p.rows, p.panels, H, input_sums(p, 2), [&](TileAt tile, T* z) { multiply<2>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        const V r = cells::sigmoid(at(z, 0));
        store(p.gates[row] + unit, r, n);
        store(p.gates[row] + H + unit, cells::sigmoid(at(z, 1)), n);
        store(p.reset_h[row] + unit, r * load(p.h_prev[row] + unit, n), n);
      });
}

template <class W>
void gru_forward_candidate(const StepForward<W>& p) {
  using T = Compute<W>;
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H,
      [&](Index row, Index unit, auto n, T* z) { put(z, 0, load(p.pre[row] + 2 * H + unit, n)); },
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        const V candidate = cells::tanh(at(z, 0));
        const V update = load<T>(p.gates[row] + H + unit, n);
        store(p.gates[row] + 2 * H + unit, candidate, n);
        store(p.h[row] + unit, cells::gru_hidden(update, candidate, load(p.h_prev[row] + unit, n)), n);
      });
}

template <class T>
void gru_reset_hidden(const StepForward<T>& p) {
  constexpr int lanes = Vec<T>::lanes;
  for (Index row = 0; row < p.rows; ++row) {
    for (Index unit = 0; unit < p.units; unit += lanes) {
      const Index n = p.units - unit;
      store(p.reset_h[row] + unit, load(p.pre[row] + unit, n) * load(p.h_prev[row] + unit, n), n);
    }
  }
}

// dG columns: n' r z n (n' belongs to q).
template <class T>
void gru_backward(const StepBackward<T>& p) {
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H, products_alone(p, 3, 4),
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        const T* gates = p.gates[row] + unit;
        const V r = load(gates, n), update = load(gates + H, n), candidate = load(gates + 2 * H, n);
        V da_z, da_n, dh_prev;
        cells::gru_backward(incoming(p, row, unit, n, z), update, candidate, load(p.h_prev[row] + unit, n),
                            da_z, da_n, dh_prev);
        T* dg = p.dg[row] + unit;
        store(dg, da_n * r, n);
        store(dg + H, cells::gru_reset_backward(da_n, load(p.candidate[row] + unit, n), r), n);
        store(dg + 2 * H, da_z, n);
        store(dg + 3 * H, da_n, n);
        store(p.carry[row] + unit, dh_prev, n);
      });
}

// dG columns: r z n.
template <class T>
void gru_backward_candidate(const StepBackward<T>& p) {
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H, products_alone(p, 3, 3),
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        const T* gates = p.gates[row] + unit;
        V da_z, da_n, dh_prev;
        cells::gru_backward(incoming(p, row, unit, n, z), load(gates + H, n), load(gates + 2 * H, n),
                            load(p.h_prev[row] + unit, n), da_z, da_n, dh_prev);
        store(p.dg[row] + H + unit, da_z, n);
        store(p.dg[row] + 2 * H + unit, da_n, n);
        store(p.carry[row] + unit, dh_prev, n);
      });
}

template <class T>
void gru_backward_reset(const StepBackward<T>& p) {
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H, [&](Index, Index, auto, T* z) { put(z, 0, V(T(0))); },
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        const V d_product = at(z, 0), r = load(p.gates[row] + unit, n);
        store(p.dg[row] + unit, cells::gru_reset_backward(d_product, load(p.h_prev[row] + unit, n), r), n);
        store(p.carry[row] + unit, fma(d_product, r, load<T>(p.carry[row] + unit, n)), n);
      });
}

}  // namespace fastrnn::cpu::FRNN_ISA
