// Zoneout of one unit of h or c (Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden
// activations", ICLR 2017), forward and backward.  `keep` is 1 or 0 where it was drawn, in inference the
// probability of a 1.  1 and 0 choose: what is not chosen leaves no trace, be it infinite or NaN.
#pragma once

#include "cells/math.h"

namespace fastrnn::cells {

template <class V>
FRNN_CELL V zoneout(V keep, V before, V after) {
  const V blend = keep * before + (V(1) - keep) * after;
  return select(keep == V(1), before, select(keep == V(0), after, blend));
}

// From d, the gradient of what zoneout gave, where keep was drawn.
template <class V>
FRNN_CELL void zoneout_backward(V keep, V d, V& d_before, V& d_after) {
  d_before = select(keep == V(0), V(0), d);
  d_after = select(keep == V(0), d, V(0));
}

}  // namespace fastrnn::cells
