// Dropout, recurrent dropout and zoneout: passes over a row, the last two between the kernels of a step, over
// the units of one thread.  Masks are drawn again wherever they are needed; none is stored for backward.
#pragma once

#include "core/philox.h"
#include "cpu/kernels.h"

namespace fastrnn::cpu {

// The factors of a mask: 0 or 1 / (1 - p).
template <class W>
void draw_scale(const ForwardKernels<W>& kernels, const Dropout& mask, Index t, Index b, Index direction,
                Range units, Compute<W>* scale) {
  if constexpr (!kQuantized<W>)
    kernels.draw_mask({&mask, t, b, direction, units, static_cast<W>(mask.scale), 0, scale});
}

// What of each unit's previous value zoneout keeps: 1 or 0, or in inference the probability.
template <class W>
void draw_keep(const ForwardKernels<W>& kernels, const Zoneout& zoneout, Index t, Index b, Index direction,
               Range units, Compute<W>* keep) {
  if (zoneout.expected) {
    for (Index u = units.first; u < units.last; ++u) keep[u] = static_cast<Compute<W>>(zoneout.p);
  } else if constexpr (!kQuantized<W>) {
    kernels.draw_mask({&zoneout.updates, t, b, direction, units, 0, 1, keep});
  }
}

// out = values * scale, 0 where scale is 0 whatever the value; out may be either.
template <class T>
void multiply(const T* scale, const T* values, Range units, T* out);

// Dropout of the row (t, b) of a layer's outputs, `width` in all directions.  `scale`, the memory of such a
// row, may be out; values may, too, but not both.
template <class W>
void drop(const ForwardKernels<W>& kernels, const Dropout& mask, Index t, Index b, Index width,
          const Compute<W>* values, Compute<W>* scale, Compute<W>* out) {
  const Index units = width / mask.directions;
  for (Index d = 0; d < mask.directions; ++d)
    draw_scale(kernels, mask, t, b, d, {0, units}, scale + d * units);
  multiply(scale, values, {0, width}, out);
}

// after = zoneout(keep, before, after)
template <class T>
void zone_out(const T* keep, const T* before, Range units, T* after);

// From d, the gradient of what zoneout gave; d_after may be d.
template <class T>
void zone_out_backward(const T* keep, const T* d, Range units, T* d_before, T* d_after);

// out = 0 where d is 0
template <class T>
void clear_where_zero(const T* d, Range units, T* out);

}  // namespace fastrnn::cpu
