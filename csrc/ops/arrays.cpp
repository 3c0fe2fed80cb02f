#include "ops/arrays.h"

#include <algorithm>
#include <numeric>

#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "ops/network.h"

namespace fastrnn {

using cpu::Share;

template <class T>
void update(const std::vector<cpu::Update<T>>& arrays) {
  // Elements of 20 us on one thread, which a second one is worth waking for.
  constexpr Index kShare = Index{1} << 16;
  // A thread's part of an array begins with a cache line if the array does.
  constexpr Index kLine = 64 / sizeof(T);
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  Index total = 0;
  for (const cpu::Update<T>& array : arrays) total += array.last - array.first;
  cpu::Team team(static_cast<int>(std::clamp<Index>(total / kShare, 1, cpu::max_threads)));
  team.run([&](int tid) {
    for (cpu::Update<T> part : arrays) {
      const Index lines = (part.last - part.first + kLine - 1) / kLine;
      const auto edge = [&](int i) {
        return std::min(part.first + lines * i / team.size() * kLine, part.last);
      };
      const Index first = edge(tid), last = edge(tid + 1);
      part.first = first;
      part.last = last;
      kernels.update(part);
    }
  });
}

template <class T>
double sum_of_squares(const T* values, Index count) {
  return current_kernels<T>().sum_of_squares(values, count);
}

template <class T>
void scale(T* values, Index count, double factor) {
  current_kernels<T>().scale(values, count, static_cast<T>(factor));
}

template <class T>
double softmax_cross_entropy(cpu::SoftmaxCrossEntropy<T> rows) {
  // Logits of some 20 us on one thread.
  constexpr Index kShare = Index{1} << 14;
  const Index count = rows.last;
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  std::vector<double> losses(static_cast<std::size_t>(count));
  rows.losses = losses.data();
  cpu::Team team(static_cast<int>(std::clamp<Index>(count * rows.width / kShare, 1, cpu::max_threads)));
  team.run([&](int tid) {
    cpu::SoftmaxCrossEntropy<T> mine = rows;
    mine.first = count * tid / team.size();
    mine.last = count * (tid + 1) / team.size();
    kernels.softmax_cross_entropy(mine);
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

namespace {

// Rows that are multiplied together: theirs of x and y stay in L2 beside a few panels.
constexpr Index kRows = 256;

// Threads for so many multiply-adds: fewer are over before another thread has woken up.
template <class T>
int threads_for(const Linear<T>& s) {
  const double operations =
      2.0 * static_cast<double>(s.rows) * static_cast<double>(s.inputs) * static_cast<double>(s.outputs);
  return operations < 2e6 ? 1 : cpu::num_threads();
}

// rows[i] = first + i step
template <class T>
void point_to(std::vector<T*>& rows, T* first, Index count, Index step) {
  rows.resize(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) rows[static_cast<std::size_t>(i)] = first + i * step;
}

// out [rows][units] = bias + a [rows][depth] times the packed panels, for a thread's share of the rows.
template <class T>
void multiply_rows(const cpu::Kernels<T>& kernels, const Share& share, Index rows, const T* a, Index depth,
                   const T* panels, Index units, const T* bias, T* out) {
  std::vector<const T*> from;
  const cpu::Range mine = share.slice(rows, kernels.rows_of_tile(1));
  for (Index row = mine.first; row < mine.last; row += kRows) {
    const Index count = std::min(kRows, mine.last - row);
    point_to(from, a + row * depth, count, depth);
    for (T* to = out + row * units; to != out + (row + count) * units; to += units) {
      if (bias) {
        std::copy(bias, bias + units, to);
      } else {
        std::fill(to, to + units, T(0));
      }
    }
    cpu::AddProduct<T> product;
    product.operand = {from.data(), 1, panels, depth};
    product.units = units;
    product.rows = count;
    product.panels = {0, cpu::panel_count(units, kernels.lanes)};
    product.out = out + row * units;
    product.stride = units;
    kernels.add_product(product);
  }
}

// dweight += dy^T x for a thread's share of the panels over the inputs, which it packs itself; `sums`
// [outputs][inputs] is zero.
template <class T>
void add_outer_products(const cpu::Kernels<T>& kernels, const Share& share, const Linear<T>& s, const T* x,
                        const T* dy, T* panels, T* sums, T* dweight) {
  const cpu::Range mine = share.slice(cpu::panel_count(s.inputs, kernels.lanes));
  if (mine.first == mine.last) return;
  std::vector<const T*> rows, columns;
  for (Index row = 0; row < s.rows; row += kRows) {
    const Index count = std::min(kRows, s.rows - row);
    // Panels are `count` deep, but a thread's part of the memory begins where it does in full blocks, which
    // others may still be at.
    T* const mine_only = panels + mine.first * (std::min(kRows, s.rows) - count) * kernels.lanes;
    point_to(rows, x + row * s.inputs, count, s.inputs);
    point_to(columns, dy + row * s.outputs, s.outputs, Index{1});
    kernels.pack_rows({rows.data(), count, s.inputs, mine, mine_only});
    cpu::AddProduct<T> product;
    product.operand = {columns.data(), s.outputs, mine_only, count};
    product.units = s.inputs;
    product.rows = s.outputs;
    product.panels = mine;
    product.out = sums;
    product.stride = s.inputs;
    kernels.add_product(product);
  }
  const Index first = mine.first * kernels.lanes, last = std::min(s.inputs, mine.last * kernels.lanes);
  for (Index output = 0; output < s.outputs; ++output) {
    for (Index i = output * s.inputs + first; i < output * s.inputs + last; ++i) dweight[i] += sums[i];
  }
}

}  // namespace

template <class T>
void linear_forward(const Linear<T>& s, const T* x, const T* bias, T* y) {
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  BorrowedScratch scratch;
  const Index count = cpu::panel_count(s.outputs, kernels.lanes);
  const Index size = count * cpu::panel_size<T>(s.inputs, 1, kernels.lanes);
  T* panels = static_cast<T*>((*scratch).buffer.reserve(static_cast<std::size_t>(size) * sizeof(T)));
  cpu::Team team(threads_for(s));
  cpu::SpinBarrier barrier(team.size());
  team.run([&](int tid) {
    const Share share{tid, team.size(), false, team.size() > 1 ? &barrier : nullptr};
    kernels.pack_columns({s.weight, 1, 0, s.outputs, s.inputs, share.slice(count), panels});
    share.wait_all();
    multiply_rows(kernels, share, s.rows, x, s.inputs, panels, s.outputs, bias, y);
  });
}

template <class T>
void linear_backward(const Linear<T>& s, const T* x, const T* dy, T* dx, T* dweight, T* dbias) {
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  BorrowedScratch scratch;
  T *weight_panels = nullptr, *x_panels = nullptr, *sums = nullptr, *column_sums = nullptr;
  const Index count = cpu::panel_count(s.inputs, kernels.lanes);
  const auto lay_out = [&](Arena arena) {
    if (dx) weight_panels = arena.take<T>(count * cpu::panel_size<T>(s.outputs, 1, kernels.lanes));
    x_panels = arena.take<T>(count * cpu::panel_size<T>(std::min(kRows, s.rows), 1, kernels.lanes));
    sums = arena.take_zeroed<T>(s.outputs * s.inputs);
    column_sums = arena.take_zeroed<T>(s.outputs);
    return arena.used();
  };
  lay_out(Arena((*scratch).buffer.reserve(lay_out(Arena()))));
  std::vector<const T*> weights;
  point_to(weights, s.weight, s.outputs, s.inputs);
  cpu::Team team(threads_for(s));
  cpu::SpinBarrier barrier(team.size());
  team.run([&](int tid) {
    const Share share{tid, team.size(), false, team.size() > 1 ? &barrier : nullptr};
    if (dx) {
      kernels.pack_rows({weights.data(), s.outputs, s.inputs, share.slice(count), weight_panels});
      share.wait_all();
      multiply_rows<T>(kernels, share, s.rows, dy, s.outputs, weight_panels, s.inputs, nullptr, dx);
    }
    add_outer_products(kernels, share, s, x, dy, x_panels, sums, dweight);
    if (dbias) {
      const cpu::Range mine = share.slice(s.outputs, kernels.lanes);
      kernels.column_sum({dy, s.outputs, nullptr, s.rows, mine.first, mine.last, column_sums});
      for (Index i = mine.first; i < mine.last; ++i) dbias[i] += column_sums[i];
    }
  });
}

#define FRNN_INSTANTIATE(T)                                               \
  template void update(const std::vector<cpu::Update<T>>&);               \
  template double sum_of_squares(const T*, Index);                        \
  template void scale(T*, Index, double);                                 \
  template double softmax_cross_entropy(cpu::SoftmaxCrossEntropy<T>);     \
  template void linear_forward(const Linear<T>&, const T*, const T*, T*); \
  template void linear_backward(const Linear<T>&, const T*, const T*, T*, T*, T*);
FRNN_INSTANTIATE(float)
FRNN_INSTANTIATE(double)
#undef FRNN_INSTANTIATE

}  // namespace fastrnn
