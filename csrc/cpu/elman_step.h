// Elman kernels: one step, forward and backward.  Equations: cells/elman.h; arguments: kernels.h.
#pragma once

#include "cells/elman.h"
#include "cpu/product.h"

namespace fastrnn::cpu::FRNN_ISA {

template <class W, Nonlinearity Kind>
void elman_forward_as(const StepForward<W>& p) {
  using T = Compute<W>;
  for_tiles<1, T>(
      p.rows, p.panels, p.units, input_sums(p, 1),
      [&](TileAt tile, T* z) {
        if (!p.pre) multiply<1>(p.input, tile, z);
        multiply<1>(p.recurrent, tile, z);
      },
      [&](Index row, Index unit, auto n, T* z) {
        store(p.h[row] + unit, cells::activate(Kind, at(z, 0)), n);
      });
}

// The choice is made out here because inside it costs as much as a tanh.
template <class W>
void elman_forward(const StepForward<W>& p) {
  switch (p.nonlinearity) {
    case Nonlinearity::tanh: return elman_forward_as<W, Nonlinearity::tanh>(p);
    case Nonlinearity::relu: return elman_forward_as<W, Nonlinearity::relu>(p);
    case Nonlinearity::sigmoid: return elman_forward_as<W, Nonlinearity::sigmoid>(p);
    case Nonlinearity::identity: return elman_forward_as<W, Nonlinearity::identity>(p);
  }
}

template <class T>
void elman_backward(const StepBackward<T>& p) {
  for_tiles<1, T>(
      p.rows, p.panels, p.units, products_alone(p, 1, 1),
      [&](TileAt tile, T* z) { multiply<1>(p.recurrent, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        store(p.dg[row] + unit,
              cells::activate_backward(p.nonlinearity, incoming(p, row, unit, n, z),
                                       load(p.gates[row] + unit, n)),
              n);
      });
}

}  // namespace fastrnn::cpu::FRNN_ISA
