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

}  // namespace fastrnn
