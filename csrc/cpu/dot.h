// What a tile does with weights of each type W: `Dot<W>`, and the rows that it multiplies them by.
//
// A vector of weights holds one group of k for each lane (kernels.h).  Where the instruction set multiplies a
// whole group, there is one part; else the group is taken apart, and rows are stored so that each part's
// values lie side by side:
//   bfloat16_t    two parts of one k: weights widened to float, rows stored as floats
//   std::int8_t   two parts of two k: weights widened to 16 bits, rows stored so, in the order 0 2 1 3
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace fastrnn::cpu::FRNN_ISA {

// float and double.
template <class W>
struct Dot {
  using Sum = Vec<W>;
  using Factor = Vec<W>;
  static constexpr int parts = 1;

  static FRNN_INLINE Sum begin(const W* z, const W*, Index, Index) { return Sum::load(z); }
  static FRNN_INLINE Factor weights(const W* w, int) { return Factor::load(w); }
  static FRNN_INLINE Factor value(const W* row, Index k, Index step, int) { return Factor(row[k * step]); }
  static FRNN_INLINE Sum add(Factor value, Factor weights, Sum sum) { return fma(value, weights, sum); }
  static FRNN_INLINE void end(Sum sum, const W*, const W*, Index, W* z) { sum.store(z); }
  static FRNN_INLINE Sum gather(Sum start, const W* panel, Index k, int gate, int gates) {
    return start + Sum::load(panel + (k * gates + gate) * Sum::lanes);
  }
};

// The word at a byte, for all lanes.
FRNN_INLINE Words word(const char* at) {
  std::int32_t value;
  __builtin_memcpy(&value, at, sizeof value);
  return value - Words{};
}

// bfloat16 number `i`, of 2, of each lane, as float.
FRNN_INLINE VecF widen(Words pair, int i) {
  // Two lanes at a time for the second: & 0xffff0000 would take a register, of which AVX2 has none left.
  return (VecF::Native)((i == 0 ? (Bits)pair : (Bits)((DoubleBits)pair >> 16)) << 16);
}

template <>
struct Dot<bfloat16_t> {
  using Sum = VecF;
  static FRNN_INLINE Sum begin(const float* z, const bfloat16_t*, Index, Index) { return Sum::load(z); }
  static FRNN_INLINE void end(Sum sum, const char*, const bfloat16_t*, Index, float* z) { sum.store(z); }
#ifdef __AVX512BF16__
  using Factor = Words;
  static constexpr int parts = 1;
  static constexpr Index row_bytes(Index depth) { return 2 * depth; }

  static FRNN_INLINE Factor weights(const bfloat16_t* w, int) { return load_words(w); }
  static FRNN_INLINE Factor value(const char* row, Index k, Index, int) { return word(row + 4 * k); }
  static FRNN_INLINE Sum add(Factor value, Factor weights, Sum sum) { return dot_bf16(value, weights, sum); }
  static FRNN_INLINE void round(VecF x, char* to) { store_bf16(to, x); }
#else
  using Factor = VecF;
  static constexpr int parts = 2;
  static constexpr Index row_bytes(Index depth) { return 4 * depth; }

  static FRNN_INLINE Factor weights(const bfloat16_t* w, int part) { return widen(load_words(w), part); }
  static FRNN_INLINE Factor value(const char* row, Index k, Index, int part) {
    return (VecF::Native)word(row + 8 * k + 4 * part);
  }
  static FRNN_INLINE Sum add(Factor value, Factor weights, Sum sum) { return fma(value, weights, sum); }
  // Half to even; NaN stays NaN.
  static FRNN_INLINE void round(VecF x, char* to) {
    const Bits bits = (Bits)x.v;
    const Words nan = x.v != x.v;
    const Bits rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    const Bits result = (nan ? bits | 0x400000u : rounded) & 0xffff0000u;
    __builtin_memcpy(to, &result, sizeof result);
  }
#endif

  static FRNN_INLINE void round_row(const float* from, Index depth, char* to) {
    for (Index k = 0; k < depth; k += VecF::lanes) round(load(from + k, depth - k), to + row_bytes(k));
  }
  // The weights of k in a panel, and start + those.
  static FRNN_INLINE VecF gather(VecF start, const bfloat16_t* panel, Index k, int gate, int gates) {
    const bfloat16_t* w = panel + (k / 2 * gates + gate) * VecF::lanes * 2;
    return start + widen(load_words(w), static_cast<int>(k % 2));
  }
};

template <>
struct Dot<std::int8_t> {
  using Sum = Words;
  using Factor = Words;
  static constexpr int lanes = VecF::lanes;
  static constexpr Index front = 8;  // bytes before a row's values: its scale, and nothing

  static FRNN_INLINE VecF scales(const std::int8_t* panel, Index gate) {
    return (VecF::Native)load_words(panel + gate * lanes * 4);
  }
  static FRNN_INLINE VecF to_float(Words x) { return __builtin_convertvector(x, VecF::Native); }

  static FRNN_INLINE Sum begin(const float*, const std::int8_t* panel, Index gate, Index gates) {
    return load_words(panel + (gates + gate) * lanes * 4);
  }
  static FRNN_INLINE void end(Sum sum, const char* row, const std::int8_t* panel, Index gate, float* z) {
    float scale;
    __builtin_memcpy(&scale, row, sizeof scale);
    fma(to_float(sum), VecF(scale) * scales(panel, gate), VecF::load(z)).store(z);
  }
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  static constexpr int parts = 1;
  static constexpr Index row_bytes(Index depth) { return depth; }

  static FRNN_INLINE Factor weights(const std::int8_t* w, int) { return load_words(w); }
  static FRNN_INLINE Factor value(const char* row, Index k, Index, int) { return word(row + front + 4 * k); }
  static FRNN_INLINE Sum add(Factor value, Factor weights, Sum sum) { return dot_int8(value, weights, sum); }
  static FRNN_INLINE void put_group(const std::uint64_t* q, char* to) {
    const std::uint64_t first = q[0] | q[0] >> 24, second = q[1] | q[1] >> 24;
    const auto group = static_cast<std::uint32_t>((first & 0xffff) | second << 16);
    __builtin_memcpy(to, &group, sizeof group);
  }
#else
  static constexpr int parts = 2;
  static constexpr Index row_bytes(Index depth) { return 2 * depth; }

  static FRNN_INLINE Factor weights(const std::int8_t* w, int part) {
    const Words four = load_words(w);
    return (Words)((Shorts)(part == 0 ? (Bits)((UnsignedShorts)four << 8) : (Bits)four) >> 8);
  }
  static FRNN_INLINE Factor value(const char* row, Index k, Index, int part) {
    return word(row + front + 8 * k + 4 * part);
  }
  static FRNN_INLINE Sum add(Factor value, Factor weights, Sum sum) {
    return sum + multiply_pairs(value, weights);
  }
  static FRNN_INLINE void put_group(const std::uint64_t* q, char* to) {
    const std::uint64_t group = q[0] | q[1] << 16;
    __builtin_memcpy(to, &group, sizeof group);
  }
#endif

  static FRNN_INLINE void round_row(const float* from, Index depth, char* to) {
    // As integers, magnitudes are ordered like floats, infinity and NaN above them.
    Words most = {};
    for (Index k = 0; k < depth; k += lanes) {
      const Words magnitude = (Words)load(from + k, depth - k).v & 0x7fffffff;
      most = magnitude > most ? magnitude : most;
    }
    std::int32_t bits = 0;
    for (int i = 0; i < lanes; ++i) bits = most[i] > bits ? most[i] : bits;
    float largest;
    __builtin_memcpy(&largest, &bits, sizeof largest);
    const Int8Scale s = int8_scale(largest);
    __builtin_memcpy(to, &s.scale, sizeof s.scale);
    // Adding 1.5 * 2^23 rounds to a whole number, half to even, and leaves it in the low bits.
    const VecF inverse(s.inverse), shift(12582912.0f + 128.0f);
    for (Index k = 0; k < depth; k += lanes) {
      const VecF shifted = load(from + k, depth - k) * inverse + shift;
      const Bits q = (Bits)shifted.v & 0xffu;
      std::uint64_t pairs[lanes / 2];
      __builtin_memcpy(pairs, &q, sizeof q);
      for (int i = 0; i < lanes / 4; ++i) put_group(pairs + 2 * i, to + front + row_bytes(k + 4 * i));
    }
  }
  // The product with a row that is 1 at k: 127 with a scale of 1 / 127.
  static FRNN_INLINE VecF gather(VecF start, const std::int8_t* panel, Index k, int gate, int gates) {
    const std::int8_t* w =
        panel + panel_header<std::int8_t>(gates, lanes) + (k / 4 * gates + gate) * lanes * 4;
    const int above = static_cast<int>(3 - k % 4) * 8;
    const Words q = (Words)((Bits)load_words(w) << above) >> 24;
    return fma(to_float(q * 127), VecF(int8_scale(1.0f).scale) * scales(panel, gate), start);
  }
};

}  // namespace fastrnn::cpu::FRNN_ISA
