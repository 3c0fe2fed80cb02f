// Compiled like kernels_unit.cpp, once for each instruction set and element type.
#include "cells/math.h"
#include "cpu/vec.h"
#include "vec_probe.h"

namespace fastrnn::cpu::FRNN_ISA {
namespace {

using T = FRNN_REAL;
using V = Vec<T>;

void fma(const T* a, const T* b, const T* c, T* out) { fma(V::load(a), V::load(b), V::load(c)).store(out); }
void clamp(const T* x, const T* lo, const T* hi, T* out) {
  clamp(V::load(x), V::load(lo), V::load(hi)).store(out);
}
void scale(const T* x, const T* n, T* out) { scale(V::load(x), V::load(n)).store(out); }
void select_less(const T* a, const T* b, const T* x, const T* y, T* out) {
  select(V::load(a) < V::load(b), V::load(x), V::load(y)).store(out);
}
void copy(const T* from, Index n, T* to) { store(to, load(from, n), n); }
void zip(const T* a, const T* b, T* out) {
  zip_low(V::load(a), V::load(b)).store(out);
  zip_high(V::load(a), V::load(b)).store(out + V::lanes);
}
void sigmoid(const T* x, T* out) { cells::sigmoid(V::load(x)).store(out); }
void tanh(const T* x, T* out) { cells::tanh(V::load(x)).store(out); }
void relu(const T* x, T* out) { cells::relu(V::load(x)).store(out); }

}  // namespace

extern const VecProbe<T> FRNN_CONCAT(FRNN_REAL, _probe);
const VecProbe<T> FRNN_CONCAT(FRNN_REAL, _probe) = {V::lanes, fma, clamp,   scale, select_less,
                                                    copy,     zip, sigmoid, tanh,  relu};

}  // namespace fastrnn::cpu::FRNN_ISA
