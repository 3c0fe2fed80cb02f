#include "cuda/arrays.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/kernels/arrays.h"
#include "cuda/launch.h"

namespace fastrnn::cuda {

namespace {

// Enough blocks to keep a device busy; each thread takes as many elements as that leaves it.
Grid grid_for(Index count) {
  constexpr Index kMost = 1024;
  Grid grid;
  grid.blocks = static_cast<int>(std::min(kMost, ceil_div(count, kArrayThreads)));
  return grid;
}

template <class Unit>
void copy_as(Stream stream, int axes, const Index* shape, void* to, const Index* to_strides, const void* from,
             const Index* from_strides) {
  typename CopyStrided<Unit>::Params p;
  p.count = 1;
  for (int i = 0; i < CopyStrided<Unit>::kAxes; ++i) {
    const int axis = i - (CopyStrided<Unit>::kAxes - axes);
    p.shape[i] = axis < 0 ? 1 : shape[axis];
    p.to_strides[i] = axis < 0 ? 0 : to_strides[axis];
    p.from_strides[i] = axis < 0 ? 0 : from_strides[axis];
    p.count *= p.shape[i];
  }
  p.to = static_cast<Unit*>(to);
  p.from = static_cast<const Unit*>(from);
  launch<CopyStrided<Unit>>(stream, grid_for(p.count), p);
}

}  // namespace

void copy_strided(Stream stream, Index element_bytes, int axes, const Index* shape, void* to,
                  const Index* to_strides, const void* from, const Index* from_strides) {
  const auto run = element_bytes == 1   ? &copy_as<std::uint8_t>
                   : element_bytes == 2 ? &copy_as<std::uint16_t>
                   : element_bytes == 4 ? &copy_as<std::uint32_t>
                                        : &copy_as<std::uint64_t>;
  run(stream, axes, shape, to, to_strides, from, from_strides);
}

void clear_rows(Stream stream, Index element_bytes, void* values, Index outer, Index height, Index width,
                const Index* rows, Index count) {
  const auto run = [&](auto unit) {
    using Unit = decltype(unit);
    launch<ClearRows<Unit>>(stream, grid_for(outer * count * width),
                            {outer, height, width, count, rows, static_cast<Unit*>(values)});
  };
  if (element_bytes == 2) {
    run(std::uint16_t{});
  } else if (element_bytes == 4) {
    run(std::uint32_t{});
  } else {
    run(std::uint64_t{});
  }
}

template <class T>
void scale(Stream stream, Index count, T* values, double factor) {
  launch<Scale<T>>(stream, grid_for(count), {count, values, factor});
}

// The sum of what fill(memory) leaves in `count` values.  Waits.
template <class Fill>
double sum_on_host(Stream stream, Index count, Fill fill) {
  std::vector<double> values(static_cast<std::size_t>(count));
  const std::size_t bytes = values.size() * sizeof(double);
  const Memory memory(bytes, stream);
  fill(static_cast<double*>(memory.get()));
  copy_to_host(values.data(), memory.get(), bytes, stream);
  return std::accumulate(values.begin(), values.end(), 0.0);
}

template <class T>
double sum_of_squares(Stream stream, Index count, const T* values) {
  Grid grid = grid_for(count);
  grid.shared = typename SumOfSquares<T>::Layout().all.bytes();
  return sum_on_host(stream, grid.blocks, [&](double* partial) {
    launch<SumOfSquares<T>>(stream, grid, {count, values, partial});
  });
}

template <class T>
double softmax_cross_entropy(Stream stream, Index rows, Index width, const T* logits, const Index* targets,
                             const std::uint8_t* scored, double scale, T* gradient) {
  return sum_on_host(stream, rows, [&](double* losses) {
    launch<SoftmaxCrossEntropy<T>>(stream, grid_for(rows * kWarp),
                                   {rows, width, logits, targets, scored, scale, gradient, losses});
  });
}

void begin_step(Stream stream, double* state, double learning_rate, double b1, double b2) {
  Grid one;
  one.blocks = 1;
  launch<BeginStep>(stream, one, {learning_rate, b1, b2, state});
}

template <class T>
void update(Stream stream, cells::Rule rule, Index count, T* p, const T* g, Compute<T>* a, Compute<T>* b,
            const cells::UpdateNumbers<double>& numbers, const double* state) {
  const cells::UpdateNumbers<Compute<T>> rounded(numbers);
  const Grid grid = grid_for(count);
  switch (rule) {
    case cells::Rule::sgd: return launch<SgdUpdate<T>>(stream, grid, {count, p, g, a, b, state, rounded});
    case cells::Rule::adagrad:
      return launch<AdagradUpdate<T>>(stream, grid, {count, p, g, a, b, state, rounded});
    case cells::Rule::rmsprop:
      return launch<RmspropUpdate<T>>(stream, grid, {count, p, g, a, b, state, rounded});
    case cells::Rule::adam: return launch<AdamUpdate<T>>(stream, grid, {count, p, g, a, b, state, rounded});
  }
}

#define FRNN_INSTANTIATE(T)                                                                                \
  template void scale(Stream, Index, T*, double);                                                          \
  template double sum_of_squares(Stream, Index, const T*);                                                 \
  template double softmax_cross_entropy(Stream, Index, Index, const T*, const Index*, const std::uint8_t*, \
                                        double, T*);                                                       \
  template void update(Stream, cells::Rule, Index, T*, const T*, Compute<T>*, Compute<T>*,                 \
                       const cells::UpdateNumbers<double>&, const double*);
FRNN_INSTANTIATE(float)
FRNN_INSTANTIATE(double)
FRNN_INSTANTIATE(half_t)
FRNN_INSTANTIATE(bfloat16_t)
#undef FRNN_INSTANTIATE

}  // namespace fastrnn::cuda
