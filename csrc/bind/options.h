// A network's options, from Python's words for them.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "core/network.h"

namespace fastrnn::bind {

template <class Value>
Value choose(const std::string& text, const char* name,
             std::initializer_list<std::pair<const char*, Value>> choices) {
  for (const auto& choice : choices) {
    if (text == choice.first) return choice.second;
  }
  throw pybind11::value_error(std::string(name) + " is \"" + text + "\", which is none of its values");
}

inline Network make_network(const std::string& cell, Index input_size, Index hidden_size, Index num_layers,
                            bool bidirectional, bool bias, Index proj_size, const std::string& peephole,
                            bool reset_after, const std::string& nonlinearity, double dropout,
                            double recurrent_dropout, double zoneout_h, double zoneout_c) {
  Network n;
  LayerShape& s = n.first;
  s.cell = choose<Cell>(cell, "cell", {{"lstm", Cell::lstm}, {"gru", Cell::gru}, {"rnn", Cell::rnn}});
  s.peephole = choose<Peephole>(
      peephole, "peephole",
      {{"none", Peephole::none}, {"diagonal", Peephole::diagonal}, {"full", Peephole::full}});
  s.nonlinearity = choose<Nonlinearity>(nonlinearity, "nonlinearity",
                                        {{"tanh", Nonlinearity::tanh},
                                         {"relu", Nonlinearity::relu},
                                         {"sigmoid", Nonlinearity::sigmoid},
                                         {"identity", Nonlinearity::identity}});
  s.reset_after = reset_after;
  s.bias = bias;
  s.input = input_size;
  s.hidden = hidden_size;
  s.projection = proj_size;
  n.layers = num_layers;
  n.directions = bidirectional ? 2 : 1;
  n.dropout = dropout;
  n.recurrent_dropout = recurrent_dropout;
  n.zoneout_h = zoneout_h;
  n.zoneout_c = zoneout_c;
  n.check();
  return n;
}

}  // namespace fastrnn::bind
