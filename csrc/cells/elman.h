// One unit of an Elman network (Elman 1990): h' = act(a).  Backward needs h' alone.
#pragma once

#include "cells/math.h"
#include "core/types.h"

namespace fastrnn::cells {

template <class V>
FRNN_CELL V activate(Nonlinearity kind, V a) {
  switch (kind) {
    case Nonlinearity::tanh: return tanh(a);
    case Nonlinearity::relu: return relu(a);
    case Nonlinearity::sigmoid: return sigmoid(a);
    case Nonlinearity::identity: break;
  }
  return a;
}

// act'(a), from h' = act(a).  relu'(0) = 0.
template <class V>
FRNN_CELL V activate_backward(Nonlinearity kind, V dh, V h) {
  switch (kind) {
    case Nonlinearity::tanh: return dh * (V(1) - h * h);
    case Nonlinearity::relu: return select(V(0) < h, dh, V(0));
    case Nonlinearity::sigmoid: return dh * (h * (V(1) - h));
    case Nonlinearity::identity: break;
  }
  return dh;
}

}  // namespace fastrnn::cells
