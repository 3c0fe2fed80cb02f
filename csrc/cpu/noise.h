// Recurrent dropout and zoneout: passes over a row, between the kernels of a step, over the units of one
// thread.  Masks are drawn again wherever they are needed; none is stored for backward.
#pragma once

#include "core/philox.h"
#include "cpu/kernels.h"

namespace fastrnn::cpu {

// The factors of a mask on h that is the same at all steps: 0 or 1 / (1 - p).
template <class W>
void draw_scale(const ForwardKernels<W>& kernels, const Dropout& mask, Index b, Index direction, Range units,
                Compute<W>* scale) {
  if constexpr (!kQuantized<W>)
    kernels.draw_mask({&mask, 0, b, direction, units, static_cast<W>(mask.scale), 0, scale});
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

// out = a * b
template <class T>
void multiply(const T* a, const T* b, Range units, T* out);

// total += a, or a * scale if there is one
template <class T>
void accumulate(const T* a, const T* scale, Range units, T* total);

// after = zoneout(keep, before, after)
template <class T>
void zone_out(const T* keep, const T* before, Range units, T* after);

// From d, the gradient of what zoneout gave; d_after may be d.
template <class T>
void zone_out_backward(const T* keep, const T* d, Range units, T* d_before, T* d_after);

}  // namespace fastrnn::cpu
