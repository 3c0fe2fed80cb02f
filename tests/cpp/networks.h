// Every cell with every option, small: what both back ends are tested with.
#pragma once

#include <vector>

#include "core/network.h"

namespace fastrnn {

inline std::vector<Network> networks() {
  std::vector<Network> all;
  const auto add = [&](Cell cell, auto change) {
    Network n;
    n.first.cell = cell;
    n.first.input = 3;
    n.first.hidden = 9;
    change(n);
    all.push_back(n);
  };
  add(Cell::lstm, [](Network&) {});
  add(Cell::lstm, [](Network& n) { n.first.bias = false, n.first.projection = 4, n.layers = 2; });
  add(Cell::lstm, [](Network& n) { n.first.peephole = Peephole::diagonal, n.directions = 2; });
  add(Cell::lstm,
      [](Network& n) { n.first.peephole = Peephole::full, n.first.projection = 5, n.directions = 2; });
  add(Cell::lstm, [](Network& n) { n.first.peephole = Peephole::full, n.layers = 2; });
  add(Cell::lstm, [](Network& n) { n.layers = 3, n.directions = 2, n.dropout = 0.4; });
  add(Cell::gru, [](Network& n) { n.first.hidden = 1, n.first.input = 1; });
  add(Cell::gru, [](Network& n) { n.layers = 2, n.directions = 2; });
  add(Cell::gru, [](Network& n) { n.first.reset_after = false, n.layers = 2; });
  add(Cell::gru, [](Network& n) { n.first.reset_after = false, n.first.bias = false, n.directions = 2; });
  add(Cell::rnn, [](Network& n) { n.directions = 2; });
  add(Cell::rnn,
      [](Network& n) { n.first.nonlinearity = Nonlinearity::sigmoid, n.layers = 2, n.dropout = 0.5; });
  add(Cell::rnn, [](Network& n) { n.first.nonlinearity = Nonlinearity::relu, n.first.bias = false; });
  add(Cell::rnn, [](Network& n) { n.first.nonlinearity = Nonlinearity::identity, n.first.hidden = 17; });
  return all;
}

// Recurrent dropout and zoneout, alone and together, with all that they meet in a kernel.
inline std::vector<Network> noisy_networks() {
  std::vector<Network> all;
  for (Network n : networks()) {
    const std::size_t i = all.size();
    n.recurrent_dropout = i % 3 == 0 ? 0 : 0.3;
    n.zoneout_h = i % 3 == 1 ? 0 : 0.25;
    n.zoneout_c = n.first.cell == Cell::lstm && (i % 2 == 0 || n.first.projection) ? 0.4 : 0;
    all.push_back(n);
  }
  return all;
}

}  // namespace fastrnn
