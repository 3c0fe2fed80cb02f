// Zoneout of one unit of h or c (Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden
// activations", ICLR 2017), forward and backward.  `keep` is 1 or 0 where it was drawn, in inference the
// probability of a 1.
#pragma once

#include "cells/math.h"

namespace fastrnn::cells {

template <class V>
FRNN_CELL V zoneout(V keep, V before, V after) {
  return keep * before + (V(1) - keep) * after;
}

// From d, the gradient of what zoneout gave.
template <class V>
FRNN_CELL void zoneout_backward(V keep, V d, V& d_before, V& d_after) {
  d_before = keep * d;
  d_after = (V(1) - keep) * d;
}

}  // namespace fastrnn::cells
