// One unit of an LSTM, forward and backward.  Hochreiter & Schmidhuber 1997, with the forget gate of Gers,
// Schmidhuber & Cummins 2000; peepholes: Gers & Schmidhuber 2000.
//
//   i = s(a_i)   f = s(a_f)   g = tanh(a_g)   c' = f c + i g   o = s(a_o)   h' = o tanh(c')
//
// a_* are pre-activations.  With peepholes a_i and a_f contain w_ci c and w_cf c, a_o contains w_co c'
// (diagonal) or the same with matrices (full): so o comes in a function of its own, after c'.
#pragma once

#include "cells/math.h"

namespace fastrnn::cells {

template <class V>
struct LstmState {
  V i, f, g, c;  // c is c'
};

template <class V>
FRNN_CELL V lstm_new_cell(V i, V f, V g, V c_prev) {
  return fma(f, c_prev, i * g);
}

template <class V>
FRNN_CELL LstmState<V> lstm_cell(V a_i, V a_f, V a_g, V c_prev) {
  LstmState<V> s;
  s.i = sigmoid(a_i);
  s.f = sigmoid(a_f);
  s.g = tanh(a_g);
  s.c = lstm_new_cell(s.i, s.f, s.g, c_prev);
  return s;
}

template <class V>
FRNN_CELL V lstm_hidden(V o, V c) {
  return o * tanh(c);
}

// Gradient of a_o, and what reaches c' by way of h'.
template <class V>
FRNN_CELL void lstm_output_backward(V dh, V o, V c, V& da_o, V& dc) {
  const V tanh_c = tanh(c);
  da_o = dh * tanh_c * (o * (V(1) - o));
  dc = fma(dh * o, V(1) - tanh_c * tanh_c, dc);
}

// From dc, the whole gradient of c', to the other three pre-activations and to c (without peepholes).
template <class V>
FRNN_CELL void lstm_cell_backward(V dc, V i, V f, V g, V c_prev, V& da_i, V& da_f, V& da_g, V& dc_prev) {
  da_i = dc * g * (i * (V(1) - i));
  da_f = dc * c_prev * (f * (V(1) - f));
  da_g = dc * i * (V(1) - g * g);
  dc_prev = dc * f;
}

}  // namespace fastrnn::cells
