// Work on whole arrays that is no part of a network: what trains networks on the CPU needs beside them.
#pragma once

#include <vector>

#include "cpu/kernels.h"

namespace fastrnn {

// One step of an optimizer for each of these arrays, all of them [first, last).
template <class T>
void update(const std::vector<cpu::Update<T>>& arrays);

// In double, in an order that `count` fixes.
template <class T>
double sum_of_squares(const T* values, Index count);

// values *= factor
template <class T>
void scale(T* values, Index count, double factor);

// cpu::SoftmaxCrossEntropy of all rows; returns the sum of their losses, in the order of the rows.
template <class T>
double softmax_cross_entropy(cpu::SoftmaxCrossEntropy<T> rows);

// y [rows][outputs] = x [rows][inputs] W^T + b.  A row's bits depend neither on the other rows nor on
// threads.
template <class T>
struct Linear {
  Index rows = 0, inputs = 0, outputs = 0;
  const T* weight = nullptr;  // W [outputs][inputs]
};
template <class T>
void linear_forward(const Linear<T>& shape, const T* x, const T* bias, T* y);

// dx = dy W (if dx), dW += dy^T x, db += sum of the rows of dy (if db).  The sums over rows are one chain,
// from zero, which is then added.
template <class T>
void linear_backward(const Linear<T>& shape, const T* x, const T* dy, T* dx, T* dweight, T* dbias);

}  // namespace fastrnn
