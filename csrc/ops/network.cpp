#include "ops/network.h"

#include "core/check.h"
#include "cpu/isa.h"

namespace fastrnn {

namespace {
constexpr double kMostElements = 1e17;
}

void Network::check() const {
  FRNN_CHECK(first.input >= 1 && first.hidden >= 1 && layers >= 1, "sizes must be at least 1");
  FRNN_CHECK(directions == 1 || directions == 2, "a layer has one or two directions");
  FRNN_CHECK(first.projection >= 0 && first.projection < first.hidden,
             "proj_size must be smaller than hidden_size");
  FRNN_CHECK(first.cell == Cell::lstm || (first.projection == 0 && first.peephole == Peephole::none),
             "projection and peephole belong to the LSTM");
  FRNN_CHECK(dropout >= 0 && dropout <= 1, "dropout is a probability");
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

namespace {

template <class T>
const cpu::Kernels<T>& of_type(const cpu::Kernels<float>& single, const cpu::Kernels<double>& wide) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return single;
  } else {
    return wide;
  }
}

}  // namespace

template <class T>
const cpu::Kernels<T>& current_kernels() {
  switch (cpu::current_isa()) {
#ifdef FRNN_HAVE_AVX512
    case cpu::Isa::avx512: return of_type<T>(cpu::avx512::float_kernels, cpu::avx512::double_kernels);
#endif
#ifdef FRNN_HAVE_AVX2
    case cpu::Isa::avx2: return of_type<T>(cpu::avx2::float_kernels, cpu::avx2::double_kernels);
#endif
    default: return of_type<T>(cpu::baseline::float_kernels, cpu::baseline::double_kernels);
  }
}
template const cpu::Kernels<float>& current_kernels<float>();
template const cpu::Kernels<double>& current_kernels<double>();

template <class T>
void Weights<T>::pack(const std::vector<const T*>& parameters) {
  kernels_ = nullptr;  // not packed, should memory run out on the way
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  const auto layout = [&](Arena arena) {
    parts_.clear();
    for (Index i = 0; i < network_.parts(); ++i) {
      parts_.emplace_back(arena, network_.shape(i / network_.directions), kernels.lanes);
    }
    return arena.used();
  };
  layout(Arena(memory_.reserve(layout(Arena()))));
  for (Index i = 0; i < network_.parts(); ++i) {
    parts_[static_cast<std::size_t>(i)].pack(network_.shape(i / network_.directions), kernels.lanes,
                                             part_of<cpu::LayerParameters<T>>(network_, parameters, i));
  }
  kernels_ = &kernels;
}

template <class T>
void Reserve<T>::layout(const Network& network, Index steps, Index batch) {
  steps_ = -1;  // belongs to no call, should memory run out on the way
  const auto layout = [&](Arena arena) {
    parts_.assign(static_cast<std::size_t>(network.parts()), Part{});
    outputs_.clear();
    const LayerShape& s = network.first;
    const Index units = steps * batch * s.hidden;
    for (Part& part : parts_) {
      if (s.reserved_gates()) part.gates = arena.take<T>(units * s.reserved_gates());
      if (s.cell == Cell::lstm) part.cells = arena.take<T>(units);
    }
    for (Index layer = 0; layer + 1 < network.layers; ++layer)
      outputs_.push_back(arena.take<T>(steps * batch * network.output()));
    return arena.used();
  };
  bytes_ = layout(Arena());
  layout(Arena(memory_.reserve(bytes_)));
  network_ = network;
  steps_ = steps;
  batch_ = batch;
}

template <class T>
bool Reserve<T>::belongs_to(const Network& network, Index steps, Index batch) const {
  return steps == steps_ && batch == batch_ && network == network_;
}

template class Weights<float>;
template class Weights<double>;
template class Reserve<float>;
template class Reserve<double>;

}  // namespace fastrnn
