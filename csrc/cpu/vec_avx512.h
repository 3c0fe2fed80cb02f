// 512-bit vectors: x86-64 with AVX-512 F, DQ, BW and VL.
#pragma once

// GCC 12's own header passes an undefined vector on purpose and then warns of it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace fastrnn::cpu::FRNN_ISA {

inline constexpr int kAccumulators = 24;  // of 32 registers; the others hold weights and one broadcast
using VecF = Vec<float>;
using VecD = Vec<double>;

FRNN_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
FRNN_INLINE VecD fma(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }

// min and max return their second operand when one is NaN.
FRNN_INLINE VecF clamp(VecF x, VecF lo, VecF hi) { return _mm512_min_ps(hi.v, _mm512_max_ps(lo.v, x.v)); }
FRNN_INLINE VecD clamp(VecD x, VecD lo, VecD hi) { return _mm512_min_pd(hi.v, _mm512_max_pd(lo.v, x.v)); }

FRNN_INLINE VecF scale(VecF x, VecF n) { return _mm512_scalef_ps(x.v, n.v); }
FRNN_INLINE VecD scale(VecD x, VecD n) { return _mm512_scalef_pd(x.v, n.v); }

FRNN_INLINE __mmask16 first_lanes(float, Index n) { return static_cast<__mmask16>((1u << n) - 1); }
FRNN_INLINE __mmask8 first_lanes(double, Index n) { return static_cast<__mmask8>((1u << n) - 1); }
FRNN_INLINE VecF load_first(const float* p, Index n) {
  return _mm512_maskz_loadu_ps(first_lanes(0.0f, n), p);
}
FRNN_INLINE VecD load_first(const double* p, Index n) {
  return _mm512_maskz_loadu_pd(first_lanes(0.0, n), p);
}
FRNN_INLINE void store_first(float* p, VecF x, Index n) {
  _mm512_mask_storeu_ps(p, first_lanes(0.0f, n), x.v);
}
FRNN_INLINE void store_first(double* p, VecD x, Index n) {
  _mm512_mask_storeu_pd(p, first_lanes(0.0, n), x.v);
}

FRNN_INLINE VecF zip_low(VecF a, VecF b) {
  return _mm512_permutex2var_ps(
      a.v, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b.v);
}
FRNN_INLINE VecF zip_high(VecF a, VecF b) {
  return _mm512_permutex2var_ps(
      a.v, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b.v);
}
FRNN_INLINE VecD zip_low(VecD a, VecD b) {
  return _mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b.v);
}
FRNN_INLINE VecD zip_high(VecD a, VecD b) {
  return _mm512_permutex2var_pd(a.v, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b.v);
}

FRNN_INLINE Words multiply_pairs(Words a, Words b) {
  return (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#ifdef __AVX512VNNI__
FRNN_INLINE Words dot_int8(Words a, Words b, Words sum) {
  return (Words)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#endif
#ifdef __AVX512BF16__
FRNN_INLINE VecF dot_bf16(Words a, Words b, VecF sum) {
  return _mm512_dpbf16_ps(sum.v, (__m512bh)a, (__m512bh)b);
}
FRNN_INLINE void store_bf16(char* p, VecF x) {
  const __m256bh rounded = _mm512_cvtneps_pbh(x.v);
  __builtin_memcpy(p, &rounded, sizeof rounded);
}
#endif

}  // namespace fastrnn::cpu::FRNN_ISA
