// Plain loops, which CMakeLists.txt has vectorised, the same for every instruction set: beside the products
// of a step they take little.
#include "cpu/noise.h"

#include "cells/zoneout.h"

namespace fastrnn::cpu {

template <class T>
void multiply(const T* scale, const T* values, Range units, T* out) {
  for (Index u = units.first; u < units.last; ++u) {
    const T product = scale[u] * values[u];
    out[u] = scale[u] != 0 ? product : T(0);
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

template <class T>
void clear_where_zero(const T* d, Range units, T* out) {
  for (Index u = units.first; u < units.last; ++u) out[u] = d[u] != 0 ? out[u] : T(0);
}

#define FRNN_INSTANTIATE(T)                                           \
  template void multiply(const T*, const T*, Range, T*);              \
  template void zone_out(const T*, const T*, Range, T*);              \
  template void zone_out_backward(const T*, const T*, Range, T*, T*); \
  template void clear_where_zero(const T*, Range, T*);
FRNN_INSTANTIATE(float)
FRNN_INSTANTIATE(double)

}  // namespace fastrnn::cpu
