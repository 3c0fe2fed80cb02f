// scale(x, n) = x * 2^n for the instruction sets that have no instruction for it.
#pragma once

namespace fastrnn::cpu::FRNN_ISA {

// 2^n is built in the exponent bits: adding 1.5 * 2^23 + bias leaves n + bias in the low bits.  In two
// halves, because n may lie outside the exponents that a normal number has.
FRNN_INLINE Vec<float> power_of_two(Vec<float> n) {
  return (Vec<float>::Native)(((Vec<float>::Mask)(n + Vec<float>(12582912.0f + 127.0f)).v) << 23);
}
FRNN_INLINE Vec<double> power_of_two(Vec<double> n) {
  return (Vec<double>::Native)(((Vec<double>::Mask)(n + Vec<double>(6755399441055744.0 + 1023.0)).v) << 52);
}
FRNN_INLINE Vec<float> scale(Vec<float> x, Vec<float> n) {
  const Vec<float> half = (n * Vec<float>(0.5f) + Vec<float>(12582912.0f)) - Vec<float>(12582912.0f);
  return x * power_of_two(half) * power_of_two(n - half);
}
FRNN_INLINE Vec<double> scale(Vec<double> x, Vec<double> n) {
  const Vec<double> half =
      (n * Vec<double>(0.5) + Vec<double>(6755399441055744.0)) - Vec<double>(6755399441055744.0);
  return x * power_of_two(half) * power_of_two(n - half);
}

}  // namespace fastrnn::cpu::FRNN_ISA
