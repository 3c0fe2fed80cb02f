// The activations, once, for every arithmetic type V: float, double, and the SIMD vectors of csrc/cpu.
//
// V brings + - * /, V(scalar), and by overload fma(a, b, c), clamp(x, lo, hi), scale(x, n) = x * 2^n for
// whole-numbered n, select(mask, a, b), and `Real<V>`, its element type.  clamp lets NaN through.  The
// scalar versions stand below; each vector type brings its own.
//
// Error of sigmoid and tanh: at most 3 ulp of the result wherever it is a normal number (measured over
// every float32 exponent by tests/test_special_values.py).
#pragma once

#ifdef __CUDACC__
#define FRNN_CELL __host__ __device__ __forceinline__
#else
#define FRNN_CELL inline __attribute__((always_inline))
#endif

namespace fastrnn::cells {

template <class V>
struct RealOf {
  using type = typename V::Real;
};
template <>
struct RealOf<float> {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <class V>
using Real = typename RealOf<V>::type;

FRNN_CELL float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FRNN_CELL double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
FRNN_CELL float scale(float x, float n) { return n == n ? __builtin_ldexpf(x, static_cast<int>(n)) : n; }
FRNN_CELL double scale(double x, double n) { return n == n ? __builtin_ldexp(x, static_cast<int>(n)) : n; }
FRNN_CELL float clamp(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }
FRNN_CELL double clamp(double x, double lo, double hi) { return x < lo ? lo : x > hi ? hi : x; }
FRNN_CELL float select(bool m, float a, float b) { return m ? a : b; }
FRNN_CELL double select(bool m, double a, double b) { return m ? a : b; }

// Constants of exp by range reduction: e^y = 2^n e^r, n = round(y / ln 2), |r| <= ln(2)/2, ln 2 split in a
// part with few bits (n * ln2_hi is exact) and a rest.  expm1(r) = r + r^2 q(r), q a Chebyshev fit.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float log2e = 1.442695041f, ln2_hi = 0.693145751953125f, ln2_lo = 1.42860682031e-6f;
  static constexpr float round = 12582912.0f;                // 1.5 * 2^23: adding it rounds to a whole number
  static constexpr float lowest = -87.0f, highest = 104.0f;  // e^y normal; 1 / (1 + e^y) is 0 in float
  static constexpr float tanh_is_one = 9.2f;
  static constexpr int degree = 4;
  static constexpr float q[] = {0.5f, 0.1666657685f, 0.04166655444f, 0.008363202972f, 0.001392621347f};
};
template <>
struct ExpConstants<double> {
  static constexpr double log2e = 1.4426950408889634074, ln2_hi = 0.6931471803691238164901733,
                          ln2_lo = 1.9082149292705878161e-10;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double lowest = -708.0, highest = 746.0;
  static constexpr double tanh_is_one = 19.2;
  static constexpr int degree = 9;
  static constexpr double q[] = {0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d4fp-5,
                                 0x1.11111111109adp-7,  0x1.6c16c17893833p-10, 0x1.a01a01a7c8d47p-13,
                                 0x1.a019b8ef67c6cp-16, 0x1.71de0d9c145d0p-19, 0x1.2891a8c1d838dp-22,
                                 0x1.af38d53857513p-26};
};

// q(r) from its coefficient i upwards.  Recursion, because a device can use the value of a host's constant
// but not index an array of them.
template <int i = 0, class V>
FRNN_CELL V expm1_quotient(V r) {
  using C = ExpConstants<Real<V>>;
  constexpr Real<V> coefficient = C::q[i];
  if constexpr (i == C::degree) {
    return V(coefficient);
  } else {
    return fma(expm1_quotient<i + 1>(r), r, V(coefficient));
  }
}

// y = n ln 2 + r; returns expm1(r).
template <class V>
FRNN_CELL V reduced_expm1(V y, V& n) {
  using C = ExpConstants<Real<V>>;
  n = fma(y, V(C::log2e), V(C::round)) - V(C::round);
  const V r = fma(n, V(-C::ln2_lo), fma(n, V(-C::ln2_hi), y));
  return fma(expm1_quotient(r) * r, r, r);
}

// 1 / (1 + e^-x)
template <class V>
FRNN_CELL V sigmoid(V x) {
  using C = ExpConstants<Real<V>>;
  V n;
  const V p = reduced_expm1(clamp(V(0) - x, V(C::lowest), V(C::highest)), n);
  return V(1) / (V(1) + scale(p + V(1), n));
}

// e^2x - 1 over itself + 2: no cancellation near 0, where tanh x = x.
template <class V>
FRNN_CELL V tanh(V x) {
  using C = ExpConstants<Real<V>>;
  V n;
  const V y = clamp(x, V(-C::tanh_is_one), V(C::tanh_is_one));
  const V p = reduced_expm1(y + y, n);
  const V two_n = scale(V(1), n);
  const V e = fma(p, two_n, two_n - V(1));
  return e / (e + V(2));
}

// e^x for x <= 0, and 0 where that is no normal number; for a softmax, whose largest term is 1.
template <class V>
FRNN_CELL V exp_of_negative(V x) {
  using C = ExpConstants<Real<V>>;
  V n;
  const V p = reduced_expm1(clamp(x, V(C::lowest), V(0)), n);
  return select(x < V(C::lowest), V(0), scale(p + V(1), n));
}

// NaN stays NaN: the comparison with it is false.
template <class V>
FRNN_CELL V relu(V x) {
  return select(x < V(0), V(0), x);
}

}  // namespace fastrnn::cells
