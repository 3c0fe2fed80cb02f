// Work on whole arrays, for training: plain loops, which the compiler turns into a set's vectors.  They have
// no fused multiply-add, and so the same bits by every set.
#pragma once

#include "cpu/kernels.h"

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

}  // namespace fastrnn::cpu::FRNN_ISA
