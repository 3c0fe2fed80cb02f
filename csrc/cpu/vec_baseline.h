// 128-bit vectors that every x86-64 (SSE2) and aarch64 (NEON) processor has.
#pragma once

#include "cpu/vec_scale.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastrnn::cpu::FRNN_ISA {

using VecF = Vec<float>;
using VecD = Vec<double>;

#ifdef __aarch64__
inline constexpr int kAccumulators = 24;  // of 32 registers
FRNN_INLINE VecF fma(VecF a, VecF b, VecF c) {
  return (VecF::Native)vfmaq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v);
}
FRNN_INLINE VecD fma(VecD a, VecD b, VecD c) {
  return (VecD::Native)vfmaq_f64((float64x2_t)c.v, (float64x2_t)a.v, (float64x2_t)b.v);
}
#else
inline constexpr int kAccumulators = 8;  // of 16 registers; without fma each product needs one for itself
// SSE2 has no fused multiply-add: here, and only here, fma rounds twice.
template <class T>
FRNN_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
#endif

template <class T>
FRNN_INLINE Vec<T> clamp(Vec<T> x, Vec<T> lo, Vec<T> hi) {
  return select(x < lo, lo, select(hi < x, hi, x));
}

template <class T>
FRNN_INLINE Vec<T> load_first(const T* p, Index n) {
  Vec<T> r(T(0));
  for (Index i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
template <class T>
FRNN_INLINE void store_first(T* p, Vec<T> x, Index n) {
  for (Index i = 0; i < n; ++i) p[i] = x.v[i];
}

template <class T>
FRNN_INLINE Vec<T> zip(Vec<T> a, Vec<T> b, int from) {
  Vec<T> r;
  for (int i = 0; i < Vec<T>::lanes; ++i) r.v[i] = (i % 2 ? b : a).v[from + i / 2];
  return r;
}
template <class T>
FRNN_INLINE Vec<T> zip_low(Vec<T> a, Vec<T> b) {
  return zip(a, b, 0);
}
template <class T>
FRNN_INLINE Vec<T> zip_high(Vec<T> a, Vec<T> b) {
  return zip(a, b, Vec<T>::lanes / 2);
}

FRNN_INLINE Words multiply_pairs(Words a, Words b) {
#ifdef __SSE2__
  return (Words)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return ((Words)((Bits)a << 16) >> 16) * ((Words)((Bits)b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

}  // namespace fastrnn::cpu::FRNN_ISA
