// Work on whole arrays: copies between strides, sums, and the updates of optimizers.  One thread goes through
// the elements that are a grid apart; nothing depends on how many blocks there are but the number of partial
// sums.
#pragma once

#include <cmath>

#include "cells/optimizers.h"
#include "core/half.h"
#include "cuda/arrays.h"
#include "cuda/context.h"

namespace fastrnn::cuda {

inline constexpr int kArrayThreads = 256;

// Calls body(i) for every element i < count that is this thread's; one after the other, because several at
// once make an optimizer's update spill on sm_100.
template <class X, class Body>
FRNN_DEVICE void for_elements(X& x, Index count, Body body) {
  const Index all = Index{x.blocks()} * kArrayThreads;
  FRNN_ROLLED
  for (Index i = Index{x.block()} * kArrayThreads + x.thread(); i < count; i += all) body(i);
}

// to = from, element by element, whatever their strides; Unit is any type of the element's size.
template <class Unit>
struct CopyStrided {
  static constexpr const char* kName = "copy_strided";
  static constexpr int kThreads = kArrayThreads;
  static constexpr int kAxes = kMostAxes;

  struct Params {
    Index count = 0;
    Index shape[kAxes];  // 1 in front where there are fewer axes
    Index to_strides[kAxes], from_strides[kAxes];
    Unit* to = nullptr;
    const Unit* from = nullptr;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_elements(x, p.count, [&](Index i) {
      Index to = 0, from = 0;
      FRNN_UNROLL
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        const Index at = i % p.shape[axis];
        i /= p.shape[axis];
        to += at * p.to_strides[axis];
        from += at * p.from_strides[axis];
      }
      p.to[to] = p.from[from];
    });
  }
};

// values[outer][rows[i]][:] = 0
template <class Unit>
struct ClearRows {
  static constexpr const char* kName = "clear_rows";
  static constexpr int kThreads = kArrayThreads;

  struct Params {
    Index outer = 0, height = 0, width = 0;  // of values
    Index count = 0;                         // of rows
    const Index* rows = nullptr;
    Unit* values = nullptr;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_elements(x, p.outer * p.count * p.width, [&](Index i) {
      const Index column = i % p.width, row = i / p.width % p.count, outer = i / p.width / p.count;
      p.values[(outer * p.height + p.rows[row]) * p.width + column] = 0;
    });
  }
};

template <class T>
struct Scale {
  static constexpr const char* kName = "scale";
  static constexpr int kThreads = kArrayThreads;

  struct Params {
    Index count = 0;
    T* values = nullptr;
    double factor = 1;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const auto factor = static_cast<Compute<T>>(p.factor);
    for_elements(x, p.count, [&](Index i) { p.values[i] = narrow<T>(widen(p.values[i]) * factor); });
  }
};

// partial[block] = the sum of the squares that are the block's, in a fixed order.
template <class T>
struct SumOfSquares {
  static constexpr const char* kName = "sum_of_squares";
  static constexpr int kThreads = kArrayThreads;

  struct Params {
    Index count = 0;
    const T* values = nullptr;
    double* partial = nullptr;
  };
  struct Layout {
    SharedLayout all;
    Slot<double> warps = all.take<double>(kThreads / kWarp);
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    double sum = 0;
    for_elements(x, p.count, [&](Index i) {
      const double value = static_cast<double>(widen(p.values[i]));
      sum += value * value;
    });
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += x.shuffle_xor(sum, mask);
    const auto warps = x.view(Layout().warps);
    if (x.lane() == 0) warps.store(x.warp(), sum);
    x.sync();
    if (x.thread() == 0) {
      sum = 0;
      for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += warps.load(warp);
      p.partial[x.block()] = sum;
    }
  }
};

// Counts a step of an optimizer, and leaves its cells::StepSize.
struct BeginStep {
  static constexpr const char* kName = "begin_step";
  static constexpr int kThreads = kWarp;

  struct Params {
    double learning_rate = 0, b1 = 0, b2 = 0;
    double* state = nullptr;  // [kStepState]
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    if (x.thread() != 0) return;
    const double steps = p.state[0] += 1;
    const cells::StepSize size = cells::step_size(p.learning_rate, p.b1, p.b2, steps);
    p.state[1] = size.rate;
    p.state[2] = size.root;
  }
};

// Rule: of cells/optimizers.h
template <class T, class Rule>
struct UpdateBy {
  static constexpr int kThreads = kArrayThreads;

  struct Params {
    Index count = 0;
    T* parameter = nullptr;
    const T* gradient = nullptr;
    Compute<T>*a = nullptr, *b = nullptr;
    const double* state = nullptr;             // BeginStep's
    cells::UpdateNumbers<Compute<T>> numbers;  // but for what stands in `state`
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& params, X& x) {
    using A = Compute<T>;
    cells::UpdateNumbers<A> numbers = params.numbers;
    numbers.rate = static_cast<A>(params.state[1]);
    numbers.root = static_cast<A>(params.state[2]);
    for_elements(x, params.count, [&](Index i) {
      A p = widen(params.parameter[i]), a = params.a[i], b = 0;
      if (Rule::kBuffers == 2) b = params.b[i];
      Rule::step(p, widen(params.gradient[i]), a, b, numbers);
      params.parameter[i] = narrow<T>(p);
      params.a[i] = a;
      if (Rule::kBuffers == 2) params.b[i] = b;
    });
  }
};
template <class T>
struct SgdUpdate : UpdateBy<T, cells::Sgd> {
  static constexpr const char* kName = "sgd_update";
};
template <class T>
struct AdagradUpdate : UpdateBy<T, cells::Adagrad> {
  static constexpr const char* kName = "adagrad_update";
};
template <class T>
struct RmspropUpdate : UpdateBy<T, cells::Rmsprop> {
  static constexpr const char* kName = "rmsprop_update";
};
template <class T>
struct AdamUpdate : UpdateBy<T, cells::Adam> {
  static constexpr const char* kName = "adam_update";
};

// Rows of logits [rows, width] and their targets: the loss of each row, -log softmax(logits)[target], and its
// gradient times `scale`.  Where not scored both are 0, whatever the row holds.  One warp a row.
template <class T>
struct SoftmaxCrossEntropy {
  static constexpr const char* kName = "softmax_cross_entropy";
  static constexpr int kThreads = kArrayThreads;

  struct Params {
    Index rows = 0, width = 0;
    const T* logits = nullptr;
    const Index* targets = nullptr;
    const std::uint8_t* scored = nullptr;
    double scale = 1;
    T* gradient = nullptr;
    double* losses = nullptr;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    using A = Compute<T>;
    constexpr int kRows = kThreads / kWarp;
    for (Index row = Index{x.block()} * kRows + x.warp(); row < p.rows; row += Index{x.blocks()} * kRows) {
      const T* logits = p.logits + row * p.width;
      T* gradient = p.gradient + row * p.width;
      const bool scored = p.scored[row] != 0;
      if (!scored) {
        for (Index i = x.lane(); i < p.width; i += kWarp) gradient[i] = narrow<T>(A(0));
        if (x.lane() == 0) p.losses[row] = 0;
        continue;  // of all lanes: a warp has one row
      }
      A most = widen(logits[0]);
      for (Index i = x.lane(); i < p.width; i += kWarp)
        most = most < widen(logits[i]) ? widen(logits[i]) : most;
      for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        const A other = x.shuffle_xor(most, mask);
        most = most < other ? other : most;
      }
      A sum = 0;
      for (Index i = x.lane(); i < p.width; i += kWarp) sum += std::exp(widen(logits[i]) - most);
      for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += x.shuffle_xor(sum, mask);
      const Index target = p.targets[row];
      // Divided once a row: a division of doubles within the loop is a call that costs registers.
      const A scale = static_cast<A>(p.scale), weight = scale / sum;
      for (Index i = x.lane(); i < p.width; i += kWarp) {
        const A share = std::exp(widen(logits[i]) - most) * weight;
        gradient[i] = narrow<T>(i == target ? share - scale : share);
      }
      if (x.lane() == 0) {
        p.losses[row] =
            static_cast<double>(std::log(sum)) - static_cast<double>(widen(logits[target]) - most);
      }
    }
  }
};

}  // namespace fastrnn::cuda
