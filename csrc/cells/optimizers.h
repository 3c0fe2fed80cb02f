// The steps of optimizers, once: what one gradient g does to one parameter p and to what is kept of past
// gradients, a and b (b is left alone where a rule has one buffer).  Sources: fastrnn.training.
#pragma once

#include "cells/math.h"

namespace fastrnn::cells {

#ifdef __CUDACC__
FRNN_CELL float square_root(float x) { return ::sqrtf(x); }
FRNN_CELL double square_root(double x) { return ::sqrt(x); }
FRNN_CELL double power(double x, double n) { return ::pow(x, n); }
#else
FRNN_CELL float square_root(float x) { return __builtin_sqrtf(x); }
FRNN_CELL double square_root(double x) { return __builtin_sqrt(x); }
FRNN_CELL double power(double x, double n) { return __builtin_pow(x, n); }
#endif

// What makes good that Adam's running means begin as 0, at step t = 1, 2, ...; with b1 = b2 = 0, nothing.
struct StepSize {
  double rate, root;
};
FRNN_CELL StepSize step_size(double learning_rate, double b1, double b2, double t) {
  return {learning_rate / (1 - power(b1, t)), 1 / square_root(1 - power(b2, t))};
}

enum class Rule { sgd, adagrad, rmsprop, adam };

// What a rule does not use is not read.
template <class T>
struct UpdateNumbers {
  T rate = 0, root = 1;  // of StepSize
  T weight_decay = 0;    // of an L2 penalty: part of g
  T momentum = 0;
  T now = 0, past = 1;  // SGD steps by now g + past v: 0 and 1, or for Nesterov 1 and momentum
  T b1 = 0, rest1 = 1;  // of running means; rest: 1 - b
  T b2 = 0, rest2 = 1;
  T eps = 0;
  T shrink = 1;  // AdamW: 1 - learning rate * its weight decay

  UpdateNumbers() = default;
  template <class From>
  explicit FRNN_CELL UpdateNumbers(const UpdateNumbers<From>& n)
      : rate(static_cast<T>(n.rate)),
        root(static_cast<T>(n.root)),
        weight_decay(static_cast<T>(n.weight_decay)),
        momentum(static_cast<T>(n.momentum)),
        now(static_cast<T>(n.now)),
        past(static_cast<T>(n.past)),
        b1(static_cast<T>(n.b1)),
        rest1(static_cast<T>(n.rest1)),
        b2(static_cast<T>(n.b2)),
        rest2(static_cast<T>(n.rest2)),
        eps(static_cast<T>(n.eps)),
        shrink(static_cast<T>(n.shrink)) {}
};

// a = momentum a + g, p -= rate a; or for Nesterov p -= rate (g + momentum a)
struct Sgd {
  static constexpr int kBuffers = 1;
  template <class T>
  static FRNN_CELL void step(T& p, T g, T& a, T&, const UpdateNumbers<T>& n) {
    g = g + n.weight_decay * p;
    a = n.momentum * a + g;
    p = p - n.rate * (n.now * g + n.past * a);
  }
};

// a += g^2, p -= rate g / (sqrt(a) + eps)
struct Adagrad {
  static constexpr int kBuffers = 1;
  template <class T>
  static FRNN_CELL void step(T& p, T g, T& a, T&, const UpdateNumbers<T>& n) {
    g = g + n.weight_decay * p;
    a = a + g * g;
    p = p - n.rate * (g / (square_root(a) + n.eps));
  }
};

// a = b2 a + (1 - b2) g^2, b = momentum b + g / (sqrt(a) + eps), p -= rate b
struct Rmsprop {
  static constexpr int kBuffers = 2;
  template <class T>
  static FRNN_CELL void step(T& p, T g, T& a, T& b, const UpdateNumbers<T>& n) {
    g = g + n.weight_decay * p;
    a = n.b2 * a + n.rest2 * (g * g);
    b = n.momentum * b + g / (square_root(a) + n.eps);
    p = p - n.rate * b;
  }
};

// a = b1 a + (1 - b1) g, b = b2 b + (1 - b2) g^2, p = shrink p - rate a / (root sqrt(b) + eps)
struct Adam {
  static constexpr int kBuffers = 2;
  template <class T>
  static FRNN_CELL void step(T& p, T g, T& a, T& b, const UpdateNumbers<T>& n) {
    g = g + n.weight_decay * p;
    a = n.b1 * a + n.rest1 * g;
    b = n.b2 * b + n.rest2 * (g * g);
    p = n.shrink * p - n.rate * (a / (n.root * square_root(b) + n.eps));
  }
};

}  // namespace fastrnn::cells
