// Random masks without stored masks: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011), a pure function of a key and a counter, so that any device, thread and pass
// can draw the same mask again.
#pragma once

#include "core/types.h"

namespace fastrnn {

struct Philox4 {
  std::uint32_t word[4];
};

FRNN_HOST_DEVICE void philox_round(std::uint32_t& w0, std::uint32_t& w1, std::uint32_t& w2, std::uint32_t& w3,
                                   std::uint32_t key0, std::uint32_t key1) {
  const std::uint64_t a = std::uint64_t{0xD2511F53u} * w0;
  const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * w2;
  w0 = static_cast<std::uint32_t>(b >> 32) ^ w1 ^ key0;
  w1 = static_cast<std::uint32_t>(b);
  w2 = static_cast<std::uint32_t>(a >> 32) ^ w3 ^ key1;
  w3 = static_cast<std::uint32_t>(a);
}

// Calls round(key0, key1) for each round.
template <class Round>
FRNN_HOST_DEVICE void philox_rounds(std::uint32_t key0, std::uint32_t key1, Round round) {
  for (int i = 0; i < 10; ++i) {
    round(key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

FRNN_HOST_DEVICE Philox4 philox4x32(Philox4 counter, std::uint32_t key0, std::uint32_t key1) {
  philox_rounds(key0, key1, [&](std::uint32_t k0, std::uint32_t k1) {
    philox_round(counter.word[0], counter.word[1], counter.word[2], counter.word[3], k0, k1);
  });
  return counter;
}

// What a mask is for.  Masks of one call under one key must not resemble each other, so each has counters of
// its own: the upper bits of a word whose lower ones number blocks of four units, of which there are 2^29.
enum class MaskOf : std::uint32_t { output = 0, recurrent_h = 1, zoneout_h = 2, zoneout_c = 3 };

// A mask on the units of one layer, by default dropout on its outputs.  An element is kept where its 32-bit
// draw is under the threshold.  There is a draw for each (t, b, unit), but of recurrent_h one for all t.
struct Dropout {
  std::uint64_t key = 0;
  std::uint64_t threshold = std::uint64_t{1} << 32;
  double scale = 1;
  Index layer = 0, directions = 1;  // whose units are masked
  MaskOf of = MaskOf::output;

  FRNN_HOST_DEVICE static std::uint64_t make_key(std::uint64_t seed, std::uint64_t call) {
    return seed + call * 0x9E3779B97F4A7C15u;
  }
  static Dropout make(double p, std::uint64_t seed, std::uint64_t call, Index layer, Index directions,
                      MaskOf of = MaskOf::output) {
    Dropout d;
    d.key = make_key(seed, call);
    d.threshold = static_cast<std::uint64_t>((1 - p) * 4294967296.0);
    d.scale = p < 1 ? 1 / (1 - p) : 0;
    d.layer = layer;
    d.directions = directions;
    d.of = of;
    return d;
  }

  // The draws of units unit, unit + 1, ... (unit divisible by 4) of direction d, row (t, b), under a key of
  // make_key.
  FRNN_HOST_DEVICE Philox4 draw(std::uint64_t under, Index t, Index b, Index d, Index unit) const {
    return philox4x32(counter(t, b, d, unit), static_cast<std::uint32_t>(under),
                      static_cast<std::uint32_t>(under >> 32));
  }
  FRNN_HOST_DEVICE Philox4 counter(Index t, Index b, Index d, Index unit) const {
    return {{static_cast<std::uint32_t>(unit / 4) | static_cast<std::uint32_t>(of) << 29,
             static_cast<std::uint32_t>(b), of == MaskOf::recurrent_h ? 0 : static_cast<std::uint32_t>(t),
             static_cast<std::uint32_t>(layer * directions + d)}};
  }
  // The draw of any one unit.  No index into an array, which on a GPU would be memory.
  FRNN_HOST_DEVICE std::uint32_t draw_one(std::uint64_t under, Index t, Index b, Index d, Index unit) const {
    const Philox4 four = draw(under, t, b, d, unit);
    const std::uint32_t even = unit & 2 ? four.word[2] : four.word[0],
                        odd = unit & 2 ? four.word[3] : four.word[1];
    return unit & 1 ? odd : even;
  }
  // An element as dropout leaves it.
  template <class V>
  FRNN_HOST_DEVICE V apply(std::uint32_t drawn, V value) const {
    return drawn < threshold ? value * static_cast<V>(scale) : V(0);
  }
};

// Zoneout (Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", ICLR 2017)
// of h or c of one layer.  In training `updates` is a mask with a draw for each (t, b, unit), and a unit
// whose update is dropped keeps its previous value; in inference there is the expectation of that.
struct Zoneout {
  Dropout updates;
  double p = 0;  // of keeping the previous value
  bool expected = false;
};

// Recurrent dropout and zoneout of one layer in one call.
struct StateNoise {
  Dropout recurrent;  // of h as the recurrent products read it
  Zoneout h, c;
  bool drops_h = false, zones_h = false, zones_c = false;
};

}  // namespace fastrnn
