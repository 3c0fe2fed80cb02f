// Elman kernels: one step, forward and backward.  Equations: cells/elman.h; arguments: kernels.h.
#pragma once

#include "cells/elman.h"
#include "cpu/product.h"

namespace fastrnn::cpu::FRNN_ISA {

template <class T>
void elman_forward(const StepForward<T>& p) {
  for_tiles<1, T>(
      p.rows, p.panels, p.units,
      [&](Index row, Index unit, Index n, T* z) { put(z, 0, load(p.pre[row] + unit, n)); },
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z, 1); },
      [&](Index row, Index unit, Index n, T* z) {
        store(p.h[row] + unit, cells::activate(p.nonlinearity, at(z, 0)), n);
      });
}

template <class T>
void elman_backward(const StepBackward<T>& p) {
  for_tiles<1, T>(
      p.rows, p.panels, p.units, incoming(p),
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z, 1); },
      [&](Index row, Index unit, Index n, T* z) {
        store(p.dg[row] + unit,
              cells::activate_backward(p.nonlinearity, at(z, 0), load(p.gates[row] + unit, n)), n);
      });
}

}  // namespace fastrnn::cpu::FRNN_ISA
