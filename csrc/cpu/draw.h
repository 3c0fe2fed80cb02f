// Random masks (core/philox.h) of the units of one row.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace fastrnn::cpu::FRNN_ISA {

// Sixteen blocks of four draws side by side are plain loops that the compiler makes vectors of: a draw takes
// 0.8 ns with AVX-512 and 1.4 with AVX2, one block after the other 4.7 (Zen 5).
template <class T>
void draw_mask(const DrawMask<T>& p) {
  constexpr int blocks = 16;
  constexpr Index width = 4 * blocks;
  const auto key0 = static_cast<std::uint32_t>(p.mask->key),
             key1 = static_cast<std::uint32_t>(p.mask->key >> 32);
  for (Index unit = p.units.first / 4 * 4; unit < p.units.last; unit += width) {
    std::uint32_t word[4][blocks];
    const Philox4 counter = p.mask->counter(p.t, p.b, p.direction, unit);
    for (int i = 0; i < blocks; ++i) {
      word[0][i] = counter.word[0] + static_cast<std::uint32_t>(i);
      for (int j = 1; j < 4; ++j) word[j][i] = counter.word[j];
    }
    philox_rounds(key0, key1, [&](std::uint32_t round_key0, std::uint32_t round_key1) {
#pragma GCC unroll 1
      for (int i = 0; i < blocks; ++i)
        philox_round(word[0][i], word[1][i], word[2][i], word[3][i], round_key0, round_key1);
    });
    T drawn[width];
    for (int i = 0; i < blocks; ++i) {
      for (int j = 0; j < 4; ++j) drawn[4 * i + j] = word[j][i] < p.mask->threshold ? p.kept : p.dropped;
    }
    const Index first = p.units.first > unit ? p.units.first : unit;
    const Index last = p.units.last < unit + width ? p.units.last : unit + width;
    for (Index u = first; u < last; ++u) p.out[u] = drawn[u - unit];
  }
}

}  // namespace fastrnn::cpu::FRNN_ISA
