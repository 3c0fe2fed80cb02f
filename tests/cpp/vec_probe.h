// Operations of one instruction set's vector type, as plain functions over `lanes` values, so that the tests
// need not be compiled with that set's flags.
#pragma once

#include "core/types.h"

namespace fastrnn::cpu {

template <class T>
struct VecProbe {
  int lanes;
  void (*fma)(const T* a, const T* b, const T* c, T* out);
  void (*clamp)(const T* x, const T* lo, const T* hi, T* out);
  void (*scale)(const T* x, const T* n, T* out);
  void (*select_less)(const T* a, const T* b, const T* x, const T* y, T* out);  // a < b ? x : y
  void (*copy)(const T* from, Index n, T* to);  // the first n lanes, 0 < n <= lanes
  void (*zip)(const T* a, const T* b, T* out);  // both halves
  void (*sigmoid)(const T* x, T* out);
  void (*tanh)(const T* x, T* out);
  void (*relu)(const T* x, T* out);
};

namespace baseline {
extern const VecProbe<float> float_probe;
extern const VecProbe<double> double_probe;
}  // namespace baseline
namespace avx2 {
extern const VecProbe<float> float_probe;
extern const VecProbe<double> double_probe;
}  // namespace avx2
namespace avx512 {
extern const VecProbe<float> float_probe;
extern const VecProbe<double> double_probe;
}  // namespace avx512

}  // namespace fastrnn::cpu
