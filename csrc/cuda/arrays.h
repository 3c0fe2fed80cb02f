// Work on whole arrays that is no part of a network: what the Python side needs beside it.  Pointers are to
// memory of the current device; everything is queued on the stream.
#pragma once

#include "cells/optimizers.h"
#include "core/half.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

inline constexpr int kMostAxes = 4;

// to = from: `axes` (at most kMostAxes) of these sizes, strides in elements; a stride of 0 in `from`
// broadcasts.
void copy_strided(Stream stream, Index element_bytes, int axes, const Index* shape, void* to,
                  const Index* to_strides, const void* from, const Index* from_strides);

// values [outer, height, width] = 0 in these rows of the middle axis (count of them, on the device).
void clear_rows(Stream stream, Index element_bytes, void* values, Index outer, Index height, Index width,
                const Index* rows, Index count);

// T is float, double, half_t or bfloat16_t; sums are formed in Compute<T>.
template <class T>
void scale(Stream stream, Index count, T* values, double factor);

// The sum of the squares, in double.  Waits.
template <class T>
double sum_of_squares(Stream stream, Index count, const T* values);

// A step of an optimizer (cells/optimizers.h). Steps are counted on the device, so that a graph makes the
// next one at every replay: begin_step comes before the updates of a step. `state` is [kStepState] on the
// device, the first of them the steps made.
inline constexpr Index kStepState = 3;
void begin_step(Stream stream, double* state, double learning_rate, double b1, double b2);
template <class T>
void update(Stream stream, cells::Rule rule, Index count, T* p, const T* g, Compute<T>* a, Compute<T>* b,
            const cells::UpdateNumbers<double>& numbers, const double* state);

// logits and gradient [rows, width]; targets [rows] from 0 to width - 1 where scored [rows] is not 0, and
// anything elsewhere.  gradient = scale times that of the sum over the scored rows of -log
// softmax(logits)[target], which is returned.  Waits.
template <class T>
double softmax_cross_entropy(Stream stream, Index rows, Index width, const T* logits, const Index* targets,
                             const std::uint8_t* scored, double scale, T* gradient);

}  // namespace fastrnn::cuda
