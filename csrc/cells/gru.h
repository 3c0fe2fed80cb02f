// One unit of a GRU, forward and backward.  Cho et al. 2014 (r multiplies h before W_hn: reset-before);
// the form with r after the product is cuDNN's and torch.nn's (reset-after).
//
//   r = s(a_r)   z = s(a_z)   h' = (1 - z) n + z h
//   reset-after:  n = tanh(a_n + r q),  q = W_hn h + b_hn,  a_n = W_in x + b_in
//   reset-before: n = tanh(a_n),        a_n = W_in x + b_in + W_hn (r h) + b_hn
#pragma once

#include "cells/math.h"

namespace fastrnn::cells {

template <class V>
FRNN_CELL V gru_candidate_after(V a_n, V r, V q) {
  return tanh(fma(r, q, a_n));
}

template <class V>
FRNN_CELL V gru_hidden(V z, V n, V h_prev) {
  return fma(z, h_prev - n, n);
}

// From dh, the gradient of h', to a_z, the candidate's pre-activation, and to h directly.
template <class V>
FRNN_CELL void gru_backward(V dh, V z, V n, V h_prev, V& da_z, V& da_n, V& dh_prev) {
  da_z = dh * (h_prev - n) * (z * (V(1) - z));
  da_n = dh * (V(1) - z) * (V(1) - n * n);
  dh_prev = dh * z;
}

// Gradient of a_r, given the gradient of the product r * v (v = q after, h before).
template <class V>
FRNN_CELL V gru_reset_backward(V d_product, V v, V r) {
  return d_product * v * (r * (V(1) - r));
}

}  // namespace fastrnn::cells
