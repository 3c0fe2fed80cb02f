// Work on whole arrays, for training.  Updates and norms are plain loops, which the compiler turns into a
// set's vectors: without fused multiply-add, they have the same bits by every set.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace fastrnn::cpu::FRNN_ISA {

template <class Rule, class T>
void update_by(const Update<T>& u) {
  const cells::UpdateNumbers<T> n = *u.numbers;
  T* __restrict p = u.p;
  const T* __restrict g = u.g;
  T* __restrict a = u.a;
  T* __restrict b = u.b;
  for (Index i = u.first; i < u.last; ++i) {
    if constexpr (Rule::kBuffers == 1) {
      T none{};
      Rule::step(p[i], g[i], a[i], none, n);
    } else {
      Rule::step(p[i], g[i], a[i], b[i], n);
    }
  }
}

template <class T>
void update(const Update<T>& u) {
  switch (u.rule) {
    case cells::Rule::sgd: return update_by<cells::Sgd>(u);
    case cells::Rule::adagrad: return update_by<cells::Adagrad>(u);
    case cells::Rule::rmsprop: return update_by<cells::Rmsprop>(u);
    case cells::Rule::adam: return update_by<cells::Adam>(u);
  }
}

// Of doubles, in as many chains as the widest set has lanes in two vectors: the same sums by every set.
template <class T>
double sum_of_squares(const T* values, Index count) {
  constexpr int kChains = 16;
  double sums[kChains] = {};
  Index i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int j = 0; j < kChains; ++j) {
      const auto value = static_cast<double>(values[i + j]);
      sums[j] += value * value;
    }
  }
  double sum = 0;
  for (; i < count; ++i) sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  for (int j = 0; j < kChains; ++j) sum += sums[j];
  return sum;
}

template <class T>
void scale(T* values, Index count, T factor) {
  for (Index i = 0; i < count; ++i) values[i] *= factor;
}

template <class T>
void add(T* __restrict sum, const T* __restrict by, Index count) {
  for (Index i = 0; i < count; ++i) sum[i] += by[i];
}

template <class T>
FRNN_INLINE T largest(const T* row, Index width) {
  using V = Vec<T>;
  T lanes[V::lanes] = {row[0]};
  Index count = 1;
  if (width < V::lanes) {
    for (; count < width; ++count) lanes[count] = row[count];
  } else {
    V most = V::load(row + width - V::lanes);  // some of it twice
    for (Index i = 0; i + V::lanes <= width; i += V::lanes) {
      const V x = V::load(row + i);
      most = select(most < x, x, most);
    }
    most.store(lanes);
    count = V::lanes;
  }
  T most = lanes[0];
  for (Index i = 1; i < count; ++i) most = most < lanes[i] ? lanes[i] : most;
  return most;
}

template <class T>
void softmax_cross_entropy(const SoftmaxCrossEntropy<T>& p) {
  using V = Vec<T>;
  for (Index row = p.first; row < p.last; ++row) {
    const T* logits = p.logits + row * p.width;
    T* gradient = p.gradient + row * p.width;
    if (p.scored && !p.scored[row]) {
      for (Index i = 0; i < p.width; ++i) gradient[i] = 0;
      p.losses[row] = 0;
      continue;
    }
    const T most = largest(logits, p.width);
    V sums(T(0));
    for (Index i = 0; i < p.width; i += V::lanes) {
      const Index n = p.width - i;
      const V e = cells::exp_of_negative(load(logits + i, n) - V(most));
      store(gradient + i, e, n);
      // Through memory, for what a last vector has beyond the row is not to be counted.
      sums = sums + (n >= V::lanes ? e : load(gradient + i, n));
    }
    T lanes[V::lanes], sum = 0;
    sums.store(lanes);
    for (const T lane : lanes) sum += lane;
    const T weight = p.scale / sum;
    for (Index i = 0; i < p.width; i += V::lanes) {
      const Index n = p.width - i;
      store(gradient + i, load(gradient + i, n) * V(weight), n);
    }
    gradient[p.targets[row]] -= p.scale;
    // In double, since the difference of two finite floats may be beyond them.
    p.losses[row] = __builtin_log(static_cast<double>(sum)) -
                    (static_cast<double>(logits[p.targets[row]]) - static_cast<double>(most));
  }
}

}  // namespace fastrnn::cpu::FRNN_ISA
