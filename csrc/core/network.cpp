#include "core/network.h"

#include <cstdio>

#include "core/check.h"

namespace fastrnn {

namespace {
constexpr double kMostElements = 1e17;

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}
}  // namespace

void Network::check() const {
  FRNN_CHECK(first.input >= 1 && first.hidden >= 1 && layers >= 1, "sizes must be at least 1");
  FRNN_CHECK(directions == 1 || directions == 2, "a layer has one or two directions");
  FRNN_CHECK(first.projection >= 0 && first.projection < first.hidden,
             "proj_size must be smaller than hidden_size");
  FRNN_CHECK(first.cell == Cell::lstm || (first.projection == 0 && first.peephole == Peephole::none),
             "projection and peephole belong to the LSTM");
  FRNN_CHECK(dropout >= 0 && dropout <= 1, "dropout is a probability");
  FRNN_CHECK(recurrent_dropout >= 0 && recurrent_dropout <= 1, "recurrent_dropout is a probability");
  FRNN_CHECK(zoneout_h >= 0 && zoneout_h <= 1 && zoneout_c >= 0 && zoneout_c <= 1,
             "zoneout is a probability");
  FRNN_CHECK(first.cell == Cell::lstm || zoneout_c == 0, "zoneout of c belongs to the LSTM");
  constexpr Index kLargest = (Index{1} << 31) - 1;
  FRNN_CHECK(first.input <= kLargest && first.hidden <= kLargest && layers <= kLargest,
             "a size exceeds 2^31 - 1");
  // In double, where nothing overflows: every count of elements below then fits an Index, with room for
  // bytes.
  const double widest = static_cast<double>(first.input + 2 * output() + 3 * first.hidden);
  FRNN_CHECK(static_cast<double>(first.gate_rows()) * widest * static_cast<double>(parts()) < kMostElements,
             "the parameters exceed any memory");
}

void Network::check_call(Index steps, Index batch) const {
  const double widest = static_cast<double>(first.input + output() + first.gradient_columns());
  FRNN_CHECK(static_cast<double>(steps) * static_cast<double>(batch) * widest * static_cast<double>(parts()) <
                 kMostElements,
             "T, B and H together exceed any memory");
}

std::vector<Index> Network::parameter_sizes() const {
  std::vector<Index> sizes;
  for (Index i = 0; i < parts(); ++i) {
    const LayerShape s = shape(i / directions);
    sizes.push_back(s.gate_rows() * s.input);
    sizes.push_back(s.gate_rows() * s.recurrent());
    if (s.bias) sizes.insert(sizes.end(), 2, s.gate_rows());
    if (s.projection) sizes.push_back(s.projection * s.hidden);
    if (s.peephole == Peephole::diagonal) sizes.push_back(3 * s.hidden);
    if (s.peephole == Peephole::full) sizes.push_back(3 * s.hidden * s.hidden);
  }
  return sizes;
}

StateNoise Network::state_noise(Index layer, Index with_directions, bool training, std::uint64_t seed,
                                std::uint64_t call) const {
  const auto mask = [&](double p, MaskOf of) {
    return Dropout::make(p, seed, call, layer, with_directions, of);
  };
  return {mask(recurrent_dropout, MaskOf::recurrent_h),
          {mask(zoneout_h, MaskOf::zoneout_h), zoneout_h, !training},
          {mask(zoneout_c, MaskOf::zoneout_c), zoneout_c, !training},
          training && recurrent_dropout > 0,
          zoneout_h > 0,
          zoneout_c > 0};
}

std::map<std::string, std::string> Network::describe_state_noise(bool training) const {
  std::map<std::string, std::string> words;
  if (recurrent_dropout > 0) {
    words["recurrent_dropout"] =
        number(recurrent_dropout) +
        (training ? ": one mask on h for each row of a call, before W_hh" : ": not in inference");
  }
  if (zoneout_h > 0 || zoneout_c > 0) {
    words["zoneout"] =
        "h " + number(zoneout_h) + (first.cell == Cell::lstm ? ", c " + number(zoneout_c) : "") +
        (training ? ": a mask for each step, drawn again in backward" : ": the expectation, at each step");
  }
  return words;
}

}  // namespace fastrnn
