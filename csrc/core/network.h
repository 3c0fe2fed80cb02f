// A stack of layers as every back end sees it: what a caller asks for, its parameters, and the arrays of a
// call.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/philox.h"
#include "core/types.h"

namespace fastrnn {

struct Network {
  LayerShape first;              // layer 0
  Index layers = 1;              // L
  Index directions = 1;          // D
  double dropout = 0;            // of the outputs of all layers but the last
  double recurrent_dropout = 0;  // of h as the recurrent products read it, one mask for all steps of a call
  double zoneout_h = 0, zoneout_c = 0;

  bool has_state_noise(bool training = true) const {
    return (training && recurrent_dropout > 0) || zoneout_h > 0 || zoneout_c > 0;
  }
  Index parts() const { return layers * directions; }
  Index output() const { return directions * first.recurrent(); }
  LayerShape shape(Index layer) const {
    LayerShape s = first;
    if (layer > 0) s.input = output();
    return s;
  }
  // Parameters of one direction of one layer, in the order weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
  // weight_ch.
  Index parameters_per_part() const {
    return 2 + (first.bias ? 2 : 0) + (first.projection ? 1 : 0) + (first.peephole != Peephole::none ? 1 : 0);
  }
  // Elements of each parameter, all parts, in that order.
  std::vector<Index> parameter_sizes() const;
  // Throw std::invalid_argument for a network that can't be, and for a call of a size that can't be.
  void check() const;
  void check_call(Index steps, Index batch) const;
  // Recurrent dropout and zoneout in one call: of a layer with its directions; or of one direction alone,
  // given the number of its part and 1, which draws the same.
  StateNoise state_noise(Index layer, Index with_directions, bool training, std::uint64_t seed,
                         std::uint64_t call) const;
  // The same in words, for explain(); empty where there is neither.
  std::map<std::string, std::string> describe_state_noise(bool training) const;

  bool operator==(const Network& o) const {
    return first == o.first && layers == o.layers && directions == o.directions && dropout == o.dropout &&
           recurrent_dropout == o.recurrent_dropout && zoneout_h == o.zoneout_h && zoneout_c == o.zoneout_c;
  }
};

// The parameters of one direction of one layer as the caller holds them, or their gradients: row-major,
// torch.nn's shapes; absent ones are null.
template <class T>
struct LayerArrays {
  T* weight_ih = nullptr;  // (G*H, I)
  T* weight_hh = nullptr;  // (G*H, R)
  T* bias_ih = nullptr;    // (G*H)
  T* bias_hh = nullptr;    // (G*H)
  T* weight_hr = nullptr;  // (P, H)
  T* weight_ch = nullptr;  // (3*H) or (3*H, H), gates i f o
};
template <class T>
using LayerParameters = LayerArrays<const T>;

// One part's arrays out of the flat list, in the order of Network::parameters_per_part().
template <class Layer, class Pointer>
Layer part_of(const Network& network, const std::vector<Pointer>& all, Index part) {
  const Pointer* next = all.data() + part * network.parameters_per_part();
  Layer layer;
  layer.weight_ih = *next++;
  layer.weight_hh = *next++;
  if (network.first.bias) {
    layer.bias_ih = *next++;
    layer.bias_hh = *next++;
  }
  if (network.first.projection) layer.weight_hr = *next++;
  if (network.first.peephole != Peephole::none) layer.weight_ch = *next++;
  return layer;
}

// What a call is given: pointers to memory of the back end that runs it.  Shapes: python/fastrnn/_core.pyi.
// Null means absent.
template <class T>
struct Arguments {
  Index steps = 0, batch = 0;
  Rows<const T> x;
  const std::int64_t* tokens = nullptr;
  const T* h0 = nullptr;
  const T* c0 = nullptr;
  const Index* lengths = nullptr;
  const std::uint8_t* reset = nullptr;  // true where not 0
  std::uint64_t seed = 0, call = 0;
};

template <class T>
struct ForwardArguments : Arguments<T> {
  Rows<T> y;
  T* h_n = nullptr;
  T* c_n = nullptr;
  const Index* state_rows = nullptr;  // row b's state is at this row of h0, c0, h_n, c_n; null = b
  Index state_batch = 0;              // rows of the state arrays
};

template <class T>
struct BackwardArguments : Arguments<T> {
  std::vector<const T*> parameters;
  Rows<const T> y;
  Rows<const T> dy;
  const T* dh_n = nullptr;
  const T* dc_n = nullptr;
  Rows<T> dx;
  T* dh0 = nullptr;
  T* dc0 = nullptr;
  std::vector<T*> gradients;
  bool add = false;  // the call's sums to what the gradients hold; else that is overwritten
};

}  // namespace fastrnn
