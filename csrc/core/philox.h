// Random masks without stored masks: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011), a pure function of a key and a counter, so that any device, thread and pass
// can draw the same mask again.
#pragma once

#include "core/types.h"

namespace fastrnn {

struct Philox4 {
  std::uint32_t word[4];
};

FRNN_HOST_DEVICE Philox4 philox4x32(Philox4 counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter.word[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(b >> 32) ^ counter.word[1] ^ key0, static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ counter.word[3] ^ key1, static_cast<std::uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Dropout on the outputs of one layer.  An element is kept where its 32-bit draw is under the threshold.
struct Dropout {
  std::uint64_t key = 0;
  std::uint64_t threshold = std::uint64_t{1} << 32;
  double scale = 1;
  Index layer = 0, directions = 1;  // whose outputs are masked

  FRNN_HOST_DEVICE static std::uint64_t make_key(std::uint64_t seed, std::uint64_t call) {
    return seed + call * 0x9E3779B97F4A7C15u;
  }
  static Dropout make(double p, std::uint64_t seed, std::uint64_t call, Index layer, Index directions) {
    Dropout d;
    d.key = make_key(seed, call);
    d.threshold = static_cast<std::uint64_t>((1 - p) * 4294967296.0);
    d.scale = p < 1 ? 1 / (1 - p) : 0;
    d.layer = layer;
    d.directions = directions;
    return d;
  }

  // The draws of units unit, unit + 1, ... (unit divisible by 4) of direction d, row (t, b), under a key of
  // make_key.
  FRNN_HOST_DEVICE Philox4 draw(std::uint64_t under, Index t, Index b, Index d, Index unit) const {
    return philox4x32({{static_cast<std::uint32_t>(unit / 4), static_cast<std::uint32_t>(b),
                        static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(layer * directions + d)}},
                      static_cast<std::uint32_t>(under), static_cast<std::uint32_t>(under >> 32));
  }

  // out = mask * in / (1 - p) for the row (t, b): `width` units of each direction.  May be in place.
  template <class T>
  void apply(const T* in, T* out, Index t, Index b, Index width) const {
    const T factor = static_cast<T>(scale);
    for (Index d = 0; d < directions; ++d) {
      for (Index unit = 0; unit < width; unit += 4) {
        const Philox4 four = draw(key, t, b, d, unit);
        const Index n = width - unit < 4 ? width - unit : 4;
        for (Index j = 0; j < n; ++j) {
          const Index at = d * width + unit + j;
          out[at] = four.word[j] < threshold ? in[at] * factor : T(0);
        }
      }
    }
  }
};

}  // namespace fastrnn
