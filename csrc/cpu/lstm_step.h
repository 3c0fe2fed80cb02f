// LSTM kernels: one step, forward and backward.  Equations: cells/lstm.h; arguments: kernels.h.
#pragma once

#include "cells/lstm.h"
#include "cpu/product.h"

namespace fastrnn::cpu::FRNN_ISA {

// Gates in z: i f g o.
template <class W>
void lstm_forward(const StepForward<W>& p) {
  using T = Compute<W>;
  using V = Vec<T>;
  const Index H = p.units;
  const bool full = p.peephole_full.panels != nullptr;
  for_tiles<4, T>(
      p.rows, p.panels, H, input_sums(p, 4),
      [&](TileAt tile, T* z) {
        if (!p.pre) multiply<4>(p.input, tile, z);
        multiply<4>(p.recurrent, tile, z);
        if (full) multiply<2, 4>(p.peephole_full, tile, z);
      },
      [&](Index row, Index unit, auto n, T* z) {
        V a_i = at(z, 0), a_f = at(z, 1), a_o = at(z, 3);
        const V c_prev = load(p.c_prev[row] + unit, n);
        if (p.peephole) {
          a_i = fma(load(p.peephole + unit, n), c_prev, a_i);
          a_f = fma(load(p.peephole + H + unit, n), c_prev, a_f);
        }
        const auto s = cells::lstm_cell(a_i, a_f, at(z, 2), c_prev);
        store(p.c[row] + unit, s.c, n);
        if (p.peephole) a_o = fma(load(p.peephole + 2 * H + unit, n), s.c, a_o);
        // With a full peephole o waits for all of c: its unfinished sum goes where o will stand.
        const V o = full ? a_o : cells::sigmoid(a_o);
        put(z, 3, o);
        if (p.gates) {
          T* gates = p.gates[row] + unit;
          store(gates, s.i, n);
          store(gates + H, s.f, n);
          store(gates + 2 * H, s.g, n);
          store(gates + 3 * H, o, n);
        }
      },
      // tanh(c) of all rows after c of all rows: one row's would wait for its own c.
      [&](Index row, Index unit, auto n, T* z) {
        if (!full) store(p.h[row] + unit, cells::lstm_hidden(at(z, 3), load<T>(p.c[row] + unit, n)), n);
      });
}

template <class W>
void lstm_forward_output(const StepForward<W>& p) {
  using T = Compute<W>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H,
      [&](Index row, Index unit, auto n, T* z) { put(z, 0, load<T>(p.gates[row] + 3 * H + unit, n)); },
      [&](TileAt tile, T* z) { multiply<1>(p.peephole_full, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        const Vec<T> o = cells::sigmoid(at(z, 0));
        store(p.gates[row] + 3 * H + unit, o, n);
        store(p.h[row] + unit, cells::lstm_hidden(o, load<T>(p.c[row] + unit, n)), n);
      });
}

template <class T>
void lstm_hidden(const StepForward<T>& p) {
  constexpr int lanes = Vec<T>::lanes;
  for (Index row = 0; row < p.rows; ++row) {
    for (Index unit = 0; unit < p.units; unit += lanes) {
      const Index n = p.units - unit;
      store(p.h[row] + unit,
            cells::lstm_hidden(load(p.pre[row] + 3 * p.units + unit, n), load(p.c_prev[row] + unit, n)), n);
    }
  }
}

template <class T>
void lstm_new_cell(const StepForward<T>& p) {
  const Index H = p.units;
  for (Index row = 0; row < p.rows; ++row) {
    for (Index unit = 0; unit < H; unit += Vec<T>::lanes) {
      const T* gates = p.pre[row] + unit;
      const Index n = H - unit;
      store(p.c[row] + unit,
            cells::lstm_new_cell(load(gates, n), load(gates + H, n), load(gates + 2 * H, n),
                                 load(p.c_prev[row] + unit, n)),
            n);
    }
  }
}

template <class T>
void lstm_backward(const StepBackward<T>& p) {
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H, products_alone(p, 4, 4),
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        const T* gates = p.gates[row] + unit;
        const V i = load(gates, n), f = load(gates + H, n), g = load(gates + 2 * H, n),
                o = load(gates + 3 * H, n);
        V da_i, da_f, da_g, da_o, dc = load(p.dc_next[row] + unit, n), dc_prev;
        cells::lstm_output_backward(incoming(p, row, unit, n, z), o, load(p.c[row] + unit, n), da_o, dc);
        if (p.peephole) dc = fma(load(p.peephole + 2 * H + unit, n), da_o, dc);
        cells::lstm_cell_backward(dc, i, f, g, load(p.c_prev[row] + unit, n), da_i, da_f, da_g, dc_prev);
        if (p.peephole) {
          dc_prev = fma(load(p.peephole + unit, n), da_i, dc_prev);
          dc_prev = fma(load(p.peephole + H + unit, n), da_f, dc_prev);
        }
        store(p.dc[row] + unit, dc_prev, n);
        T* dg = p.dg[row] + unit;
        store(dg, da_i, n);
        store(dg + H, da_f, n);
        store(dg + 2 * H, da_g, n);
        store(dg + 3 * H, da_o, n);
      });
}

// Leaves in dc what reaches c by way of h and by the forget gate of the following step.
template <class T>
void lstm_backward_output(const StepBackward<T>& p) {
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H, products_alone(p, 0, 0),
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        V da_o, dc = load(p.dc_next[row] + unit, n);
        cells::lstm_output_backward(incoming(p, row, unit, n, z), load(p.gates[row] + 3 * H + unit, n),
                                    load(p.c[row] + unit, n), da_o, dc);
        store(p.dg[row] + 3 * H + unit, da_o, n);
        store(p.dc[row] + unit, dc, n);
      });
}

template <class T>
void lstm_backward_cell(const StepBackward<T>& p) {
  using V = Vec<T>;
  const Index H = p.units;
  for_tiles<1, T>(
      p.rows, p.panels, H,
      [&](Index row, Index unit, auto n, T* z) { put(z, 0, load<T>(p.dc[row] + unit, n)); },
      [&](TileAt tile, T* z) {
        multiply<1>(p.peephole_output, tile, z);
        multiply<1>(p.peephole_cell, tile, z);
      },
      [&](Index row, Index unit, auto n, T* z) {
        const T* gates = p.gates[row] + unit;
        const V i = load(gates, n), f = load(gates + H, n), g = load(gates + 2 * H, n);
        V da_i, da_f, da_g, dc_prev;
        cells::lstm_cell_backward(at(z, 0), i, f, g, load(p.c_prev[row] + unit, n), da_i, da_f, da_g,
                                  dc_prev);
        store(p.dc[row] + unit, dc_prev, n);
        T* dg = p.dg[row] + unit;
        store(dg, da_i, n);
        store(dg + H, da_f, n);
        store(dg + 2 * H, da_g, n);
      });
}

}  // namespace fastrnn::cpu::FRNN_ISA
