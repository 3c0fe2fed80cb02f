// Which element of a matrix a lane of the warp holds in which register, for mma.m16n8k16 and ldmatrix (PTX
// ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix").  Kernels ask here which row and column an
// accumulator is.
//
//   C = A B + C     A [16,16] row-major, B [16,8], C [16,8]
//
// A word holds two 16-bit elements, the one with the smaller index in the low half.  Four neighbouring lanes
// share a row of 8 elements: that is also how ldmatrix deals out an 8x8 matrix, so its four matrices are a
// FragmentA when they are the quarters (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15,
// k 8-15) of A.
#pragma once

#include "cuda/context.h"

namespace fastrnn::cuda {

struct Position {
  int row, column;
};

// Matrix of ldmatrix: half 0 or 1 of a lane's word.
FRNN_HOST_DEVICE constexpr Position matrix_element(int lane, int half) {
  return {lane / 4, lane % 4 * 2 + half};
}

// A: word 0..3, half 0..1; column is k.
FRNN_HOST_DEVICE constexpr Position fragment_a_element(int lane, int word, int half) {
  const Position e = matrix_element(lane, half);
  return {e.row + word % 2 * 8, e.column + word / 2 * 8};
}

// B: word 0..1, half 0..1; row is k.
FRNN_HOST_DEVICE constexpr Position fragment_b_element(int lane, int word, int half) {
  const Position e = matrix_element(lane, half);
  return {e.column + word * 8, e.row};
}

// C: value 0..3.
FRNN_HOST_DEVICE constexpr Position fragment_c_element(int lane, int i) {
  const Position e = matrix_element(lane, i % 2);
  return {e.row + i / 2 * 8, e.column};
}

}  // namespace fastrnn::cuda
