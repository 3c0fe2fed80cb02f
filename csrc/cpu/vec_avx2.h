// 256-bit vectors with fused multiply-add: x86-64 with AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include "cpu/vec_scale.h"

namespace fastrnn::cpu::FRNN_ISA {

inline constexpr int kAccumulators = 12;  // of 16 registers; the others hold weights and one broadcast
using VecF = Vec<float>;
using VecD = Vec<double>;

FRNN_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
FRNN_INLINE VecD fma(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }

// min and max return their second operand when one is NaN.
FRNN_INLINE VecF clamp(VecF x, VecF lo, VecF hi) { return _mm256_min_ps(hi.v, _mm256_max_ps(lo.v, x.v)); }
FRNN_INLINE VecD clamp(VecD x, VecD lo, VecD hi) { return _mm256_min_pd(hi.v, _mm256_max_pd(lo.v, x.v)); }

FRNN_INLINE __m256i first_lanes(float, Index n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FRNN_INLINE __m256i first_lanes(double, Index n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
FRNN_INLINE VecF load_first(const float* p, Index n) { return _mm256_maskload_ps(p, first_lanes(0.0f, n)); }
FRNN_INLINE VecD load_first(const double* p, Index n) { return _mm256_maskload_pd(p, first_lanes(0.0, n)); }
FRNN_INLINE void store_first(float* p, VecF x, Index n) { _mm256_maskstore_ps(p, first_lanes(0.0f, n), x.v); }
FRNN_INLINE void store_first(double* p, VecD x, Index n) { _mm256_maskstore_pd(p, first_lanes(0.0, n), x.v); }

// An unpack works within each half.
FRNN_INLINE VecF zip_low(VecF a, VecF b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20);
}
FRNN_INLINE VecF zip_high(VecF a, VecF b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31);
}
FRNN_INLINE VecD zip_low(VecD a, VecD b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x20);
}
FRNN_INLINE VecD zip_high(VecD a, VecD b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x31);
}

FRNN_INLINE Words multiply_pairs(Words a, Words b) {
  return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#ifdef __AVXVNNI__
FRNN_INLINE Words dot_int8(Words a, Words b, Words sum) {
  return (Words)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
#endif

}  // namespace fastrnn::cpu::FRNN_ISA
