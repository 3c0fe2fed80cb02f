// Plain loops, which CMakeLists.txt has vectorised, the same for every instruction set: beside the products
// of a step they take little.
#include "cpu/noise.h"

#include "cells/zoneout.h"

namespace fastrnn::cpu {

template <class T>
void multiply(const T* a, const T* b, Range units, T* out) {
  for (Index u = units.first; u < units.last; ++u) out[u] = a[u] * b[u];
}

template <class T>
void accumulate(const T* a, const T* scale, Range units, T* total) {
  if (scale) {
    for (Index u = units.first; u < units.last; ++u) total[u] += a[u] * scale[u];
  } else {
    for (Index u = units.first; u < units.last; ++u) total[u] += a[u];
  }
}

template <class T>
void zone_out(const T* keep, const T* before, Range units, T* after) {
  for (Index u = units.first; u < units.last; ++u) after[u] = cells::zoneout(keep[u], before[u], after[u]);
}

template <class T>
void zone_out_backward(const T* keep, const T* d, Range units, T* d_before, T* d_after) {
  for (Index u = units.first; u < units.last; ++u)
    cells::zoneout_backward(keep[u], d[u], d_before[u], d_after[u]);
}

#define FRNN_INSTANTIATE(T)                                \
  template void multiply(const T*, const T*, Range, T*);   \
  template void accumulate(const T*, const T*, Range, T*); \
  template void zone_out(const T*, const T*, Range, T*);   \
  template void zone_out_backward(const T*, const T*, Range, T*, T*);
FRNN_INSTANTIATE(float)
FRNN_INSTANTIATE(double)

}  // namespace fastrnn::cpu
