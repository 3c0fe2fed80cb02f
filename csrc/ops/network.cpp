#include "ops/network.h"

#include <algorithm>

#include "cpu/isa.h"

namespace fastrnn {

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
                                             part_of<LayerParameters<T>>(network_, parameters, i));
  }
  kernels_ = &kernels;
}

template <class T>
Index segment_steps(const LayerShape& shape, Index steps, Index batch, Index checkpoint) {
  if (!checkpoint || !shape.reserved_gates()) return 0;
  const Index block = cpu::gradient_block<T>(shape, steps, batch);
  if (shape.cell != Cell::lstm) return block;
  return std::min((std::min(checkpoint, steps) + block - 1) / block * block, steps);
}

template <class T>
void Reserve<T>::layout(const Network& network, Index steps, Index batch) {
  steps_ = -1;  // belongs to no call, should memory run out on the way
  segment_ = segment_steps<T>(network.first, steps, batch, checkpoint_);
  const auto layout = [&](Arena arena) {
    parts_.assign(static_cast<std::size_t>(network.parts()), Part{});
    outputs_.clear();
    const LayerShape& s = network.first;
    const Index units = batch * s.hidden;
    for (Part& part : parts_) {
      if (segment_) {
        if (s.cell == Cell::lstm) part.kept_cells = arena.take<T>(steps / segment_ * units);
        continue;
      }
      if (s.reserved_gates()) part.gates = arena.take<T>(steps * units * s.reserved_gates());
      if (s.cell == Cell::lstm) part.cells = arena.take<T>(steps * units);
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

template Index segment_steps<float>(const LayerShape&, Index, Index, Index);
template Index segment_steps<double>(const LayerShape&, Index, Index, Index);
template class Weights<float>;
template class Weights<double>;
template class Reserve<float>;
template class Reserve<double>;

}  // namespace fastrnn
