// The words every layer of csrc shares: index type, options, shapes.  Letters as in csrc/README.md.
#pragma once

#include <cstddef>
#include <cstdint>

// Before a function that kernel units share: a copy compiled with wider instructions could be the one that
// the linker keeps for the whole program.
#define FRNN_INLINE inline __attribute__((always_inline))

// Before a function that kernels on a GPU call too.
#ifdef __CUDACC__
#define FRNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FRNN_HOST_DEVICE FRNN_INLINE
#endif

namespace fastrnn {

// Sizes and offsets are 64-bit and signed: T*B*G*H passes 2^31 elements in real use.
using Index = std::int64_t;

// The upper half of a float: 8 bits of exponent, 7 of fraction.  For storage: arithmetic is done in float.
struct bfloat16_t {
  std::uint16_t bits;
};

// What elements or weights of type T are computed in: double for double, else float.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// a / b, rounded up.
template <class A, class B>
FRNN_HOST_DEVICE constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

enum class Cell { lstm, gru, rnn };
enum class Peephole { none, diagonal, full };
enum class Nonlinearity { tanh, relu, sigmoid, identity };

// One direction of one layer.
struct LayerShape {
  Cell cell = Cell::lstm;
  Peephole peephole = Peephole::none;              // LSTM only
  Nonlinearity nonlinearity = Nonlinearity::tanh;  // Elman only
  bool reset_after = true;                         // GRU only
  bool bias = true;
  Index input = 0;       // I
  Index hidden = 0;      // H
  Index projection = 0;  // P, 0 = none; LSTM only

  bool operator==(const LayerShape& o) const {
    return cell == o.cell && peephole == o.peephole && nonlinearity == o.nonlinearity &&
           reset_after == o.reset_after && bias == o.bias && input == o.input && hidden == o.hidden &&
           projection == o.projection;
  }
  Index gates() const { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }
  Index gate_rows() const { return gates() * hidden; }
  Index recurrent() const { return projection ? projection : hidden; }

  // Activated gates kept per (t, b, unit) for backward.  The Elman layer keeps none: its output is its
  // activation.  GRU keeps r, z, n; W_hn h + b_hn is computed again, which costs one more product in
  // backward (6 % of a training step) and saves a quarter of the memory.
  Index reserved_gates() const { return cell == Cell::rnn ? 0 : gates(); }

  // Columns of one row of dG, the gradient of the pre-activations that backward hands from step to step.
  //   LSTM              i f g o
  //   GRU reset-after   n' r z n     n' belongs to W_hn h + b_hn (it is dn * r), n to W_in x + b_in
  //   GRU reset-before  r z n
  //   Elman             h
  // so that what W_hh^T multiplies and what W_ih^T multiplies are each one contiguous piece.
  Index gradient_columns() const { return (cell == Cell::gru && reset_after ? 4 : gates()) * hidden; }
  Index input_gradient_offset() const { return cell == Cell::gru && reset_after ? hidden : 0; }
  // How many columns, from column 0, W_hh^T (without the reset-before candidate) multiplies.
  Index recurrent_gradient_columns() const {
    return (cell == Cell::gru && !reset_after ? 2 : gates()) * hidden;
  }
};

// Rows of a [T, B, n] array with any strides over T and B (in elements) and unit stride over n.
template <class T>
struct Rows {
  T* data = nullptr;
  Index time_stride = 0;
  Index batch_stride = 0;

  FRNN_HOST_DEVICE T* at(Index t, Index b) const { return data + t * time_stride + b * batch_stride; }
  FRNN_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// The same rows from another column on, none of none.
template <class T>
Rows<T> columns_from(Rows<T> rows, Index column) {
  if (rows) rows.data += column;
  return rows;
}
template <class T>
T* offset(T* base, Index count) {
  return base ? base + count : nullptr;
}

// [T,B,width], contiguous.
template <class T>
Rows<T> contiguous(T* data, Index batch, Index width) {
  return {data, batch * width, width};
}

}  // namespace fastrnn
