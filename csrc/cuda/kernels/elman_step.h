// Elman network, one step of the whole batch, after the products. Equations: cells/elman.h.
// Nothing is saved for backward: the output is the activation. dG has one column a unit.
#pragma once

#include "cells/elman.h"
#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

template <class T>
struct ElmanForward {
  static constexpr const char* kName = "elman_fwd_step";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;  // H
    Nonlinearity nonlinearity = Nonlinearity::tanh;
    Sums<T> sums;
    Hidden<T> hidden;
    Noise noise;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_rows(
        x, p.walk, p.step, p.units,
        [&](const RowAt& row, Index unit) {
          p.hidden.store(row, unit, p.units, p.noise,
                         cells::activate(p.nonlinearity, p.sums.template load<1>(row, unit, p.units).at(0)));
        },
        [&](const RowAt& row, Index unit) { p.hidden.pad(row, unit); });
  }
};

template <class T>
struct ElmanBackward {
  static constexpr const char* kName = "elman_bwd_step";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index step = 0, units = 0;  // H
    Nonlinearity nonlinearity = Nonlinearity::tanh;
    Incoming<T> incoming;
    Rows<const T> y;  // [T,B,H], as forward left it
    GradientRows<T> dg;
    Noise noise;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_rows(
        x, p.walk, p.step, p.units,
        [&](const RowAt& row, Index unit) {
          const Compute<T> y = widen(p.y.at(row.time(), row.b)[unit]);
          const Compute<T> dh = p.incoming.take(row, unit, p.units, p.noise);
          // A kept unit has no part in the step. Its y is not the nonlinearity's, and the slope there, which
          // may be infinite, means nothing.
          const bool kept = p.noise.zones_h && dh == 0;
          p.dg.store(row, unit, kept ? dh : cells::activate_backward(p.nonlinearity, dh, y));
        },
        [&](const RowAt& row, Index unit) { p.dg.clear(row, unit, p.units); });
  }
};

}  // namespace fastrnn::cuda
