// One SIMD vector per instruction set, for float and double: `Vec<T>` in the namespace FRNN_ISA.
//
// Arithmetic and comparison are GCC's vector extensions (Clang has them too), the same for every set;
// what differs - width, number of registers, fma, partial loads - stands in vec_<set>.h.  Included by
// kernels_unit.cpp and quantized_unit.cpp only, once per build of them.  No STL here: a shared inline
// function compiled with wider instructions could be the copy that the linker keeps for the whole program.
#pragma once

#include "cells/math.h"
#include "core/types.h"

#define FRNN_ISA_IS_baseline 1
#define FRNN_ISA_IS_avx2 2
#define FRNN_ISA_IS_avx2_vnni 2
#define FRNN_ISA_IS_avx512 3
#define FRNN_ISA_IS_avx512_vnni 3
#define FRNN_ISA_IS_avx512_bf16 3
#define FRNN_CONCAT_(a, b) a##b
#define FRNN_CONCAT(a, b) FRNN_CONCAT_(a, b)
#define FRNN_ISA_NUMBER FRNN_CONCAT(FRNN_ISA_IS_, FRNN_ISA)

namespace fastrnn::cpu::FRNN_ISA {

inline constexpr int kVectorBytes = 8 << FRNN_ISA_NUMBER;

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Native __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t Mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lanes<double> {
  typedef double Native __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t Mask __attribute__((vector_size(kVectorBytes)));
};

// What stands in quantised weights and rows.
using Words = Lanes<float>::Mask;
typedef std::uint32_t Bits __attribute__((vector_size(kVectorBytes)));
typedef std::uint64_t DoubleBits __attribute__((vector_size(kVectorBytes)));
typedef std::int16_t Shorts __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t UnsignedShorts __attribute__((vector_size(kVectorBytes)));

FRNN_INLINE Words load_words(const void* p) {
  Words r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}

template <class T>
struct Vec {
  using Real = T;
  using Native = typename Lanes<T>::Native;
  using Mask = typename Lanes<T>::Mask;
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));

  Native v;

  Vec() = default;
  FRNN_INLINE Vec(Native native) : v(native) {}
  // s - 0 is s for every s (0 + s would lose the sign of -0); it compiles to a broadcast.
  FRNN_INLINE explicit Vec(T s) : v(s - Native{}) {}

  friend FRNN_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend FRNN_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend FRNN_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend FRNN_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend FRNN_INLINE Mask operator<(Vec a, Vec b) { return a.v < b.v; }
  friend FRNN_INLINE Vec select(Mask m, Vec a, Vec b) { return m ? a.v : b.v; }

  static FRNN_INLINE Vec load(const T* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  FRNN_INLINE void store(T* p) const { __builtin_memcpy(p, &v, sizeof v); }
};

}  // namespace fastrnn::cpu::FRNN_ISA

// Each brings kAccumulators (registers the product may hold sums in), fma, clamp, scale, load_first and
// store_first (the first n lanes, 0 < n < lanes; the others are zero, or left alone), zip_low and zip_high (a
// lane of a, one of b, the next of a, ...: the lower halves, the upper halves), multiply_pairs (the sum of
// two products of 16 bits, for each lane), and where there are instructions for them dot_int8 (sum + the
// products of four bytes, unsigned by signed), dot_bf16 and store_bf16.
#if FRNN_ISA_NUMBER == 1
#include "cpu/vec_baseline.h"
#elif FRNN_ISA_NUMBER == 2
#include "cpu/vec_avx2.h"
#elif FRNN_ISA_NUMBER == 3
#include "cpu/vec_avx512.h"
#else
#error "FRNN_ISA is no instruction set"
#endif

namespace fastrnn::cpu::FRNN_ISA {

// The first n lanes, 0 < n <= lanes.
template <class T>
FRNN_INLINE Vec<T> load(const T* p, Index n) {
  return n >= Vec<T>::lanes ? Vec<T>::load(p) : load_first(p, n);
}
template <class T>
FRNN_INLINE void store(T* p, Vec<T> x, Index n) {
  if (n >= Vec<T>::lanes) {
    x.store(p);
  } else {
    store_first(p, x, n);
  }
}

// Stands for n where it is known that no lane is missing.
struct AllLanes {};
template <class T>
FRNN_INLINE Vec<T> load(const T* p, AllLanes) {
  return Vec<T>::load(p);
}
template <class T>
FRNN_INLINE void store(T* p, Vec<T> x, AllLanes) {
  x.store(p);
}

}  // namespace fastrnn::cpu::FRNN_ISA
