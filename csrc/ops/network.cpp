#include "ops/network.h"

#include <algorithm>
#include <string>

#include "core/check.h"
#include "cpu/isa.h"

namespace fastrnn {

namespace {

// Packing so many bytes takes longer than a second thread takes to wake up.
constexpr std::size_t kWorthThreads = 256 * 1024;

// One instruction set's table for W.
template <class W>
const Table<W>& of_type(const cpu::Kernels<float>& single, const cpu::Kernels<double>& wide,
                        const cpu::ForwardKernels<bfloat16_t>& half,
                        const cpu::ForwardKernels<std::int8_t>& quarter) {
  if constexpr (std::is_same_v<W, float>) {
    return single;
  } else if constexpr (std::is_same_v<W, double>) {
    return wide;
  } else if constexpr (std::is_same_v<W, bfloat16_t>) {
    return half;
  } else {
    return quarter;
  }
}

}  // namespace

template <class W>
const Table<W>& current_kernels() {
  const cpu::Isa isa = cpu::current_isa();
  switch (isa) {
#ifdef FRNN_HAVE_AVX512
    case cpu::Isa::avx512:
      return of_type<W>(
          cpu::avx512::float_kernels, cpu::avx512::double_kernels,
          cpu::dots_bfloat16(isa) ? cpu::avx512_bf16::bfloat16_kernels : cpu::avx512::bfloat16_kernels,
          cpu::dots_int8(isa) ? cpu::avx512_vnni::int8_kernels : cpu::avx512::int8_kernels);
#endif
#ifdef FRNN_HAVE_AVX2
    case cpu::Isa::avx2:
      return of_type<W>(cpu::avx2::float_kernels, cpu::avx2::double_kernels, cpu::avx2::bfloat16_kernels,
                        cpu::dots_int8(isa) ? cpu::avx2_vnni::int8_kernels : cpu::avx2::int8_kernels);
#endif
    default:
      return of_type<W>(cpu::baseline::float_kernels, cpu::baseline::double_kernels,
                        cpu::baseline::bfloat16_kernels, cpu::baseline::int8_kernels);
  }
}
template const Table<float>& current_kernels<float>();
template const Table<double>& current_kernels<double>();
template const Table<bfloat16_t>& current_kernels<bfloat16_t>();
template const Table<std::int8_t>& current_kernels<std::int8_t>();

template <class W>
void Weights<W>::pack(const std::vector<const Compute<W>*>& parameters) {
  if constexpr (std::is_same_v<W, std::int8_t>) {
    const Index above = network_.layers > 1 ? network_.output() : 0;
    const Index longest = std::max({network_.first.input, network_.first.hidden, above});
    FRNN_CHECK(longest <= cpu::kMostDepth, "int8 sums more than " + std::to_string(cpu::kMostDepth) +
                                               " products of a unit, which may overflow 32 bits");
  }
  kernels_ = nullptr;  // not packed, should memory run out on the way
  const Table<W>& kernels = current_kernels<W>();
  const auto layout = [&](Arena arena) {
    parts_.clear();
    for (Index i = 0; i < network_.parts(); ++i) {
      parts_.emplace_back(arena, network_.shape(i / network_.directions), kernels.lanes);
    }
    return arena.used();
  };
  layout(Arena(memory_.reserve(layout(Arena()))));
  cpu::Team team(memory_.capacity() < kWorthThreads ? 1 : cpu::num_threads());
  team.run([&](int tid) {
    for (Index i = 0; i < network_.parts(); ++i) {
      parts_[static_cast<std::size_t>(i)].pack(network_.shape(i / network_.directions), kernels,
                                               part_of<LayerParameters<Compute<W>>>(network_, parameters, i),
                                               cpu::Share{tid, team.size()});
    }
  });
  kernels_ = &kernels;
}

Index segment_steps(const LayerShape& shape, Index steps, Index batch, Index checkpoint) {
  if (!checkpoint || !shape.reserved_gates()) return 0;
  const Index block = cpu::gradient_block(shape, steps, batch);
  if (shape.cell != Cell::lstm) return block;
  return std::min((std::min(checkpoint, steps) + block - 1) / block * block, steps);
}

template <class T>
void Reserve<T>::layout(const Network& network, Index steps, Index batch) {
  steps_ = -1;  // belongs to no call, should memory run out on the way
  segment_ = segment_steps(network.first, steps, batch, checkpoint_);
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

template class Weights<float>;
template class Weights<double>;
template class Weights<bfloat16_t>;
template class Weights<std::int8_t>;
template class Reserve<float>;
template class Reserve<double>;

}  // namespace fastrnn
