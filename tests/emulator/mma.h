// What the lanes of a warp make of the words that they have brought together: ldmatrix and mma.
#pragma once

#include "core/half.h"
#include "cuda/fragment.h"
#include "emulator/machine.h"

namespace fastrnn::cuda::emulated {

// Half 0 or 1 of a word, as T.
template <class T>
T element_of(std::uint32_t word, int half) {
  T value;
  value.bits = static_cast<std::uint16_t>(word >> (16 * half));
  return value;
}

// ldmatrix: lane m * 8 + r has brought row r of matrix m, two elements a word.
template <class T>
Matrices<T> deal_matrices(const Warp::Brought& rows, int lane, bool transposed) {
  Matrices<T> result = {};
  for (int m = 0; m < 4; ++m) {
    for (int half = 0; half < 2; ++half) {
      Position at = matrix_element(lane, half);
      if (transposed) at = {at.column, at.row};
      const std::uint32_t word =
          rows[static_cast<std::size_t>(m * 8 + at.row)][static_cast<std::size_t>(at.column / 2)];
      result.word[m] |= std::uint32_t{element_of<T>(word, at.column % 2).bits} << (16 * half);
    }
  }
  return result;
}

// The same of a word that a lane has brought, as a number.
template <class T>
double number_of(const Warp::Brought& words, int lane, int word, int half) {
  return static_cast<double>(
      widen(element_of<T>(words[static_cast<std::size_t>(lane)][static_cast<std::size_t>(word)], half)));
}

// mma: each lane has brought the four words of its FragmentA and the two of its FragmentB.  The sum of the 16
// products is exact but for one rounding to double, then rounded to float with C.
template <class T>
void multiply_add(const Warp::Brought& operands, int lane, FragmentC& c) {
  // Of A and B only the two rows and the two columns that the lane's values are in. Four lanes have the same
  // rows of A as this one, and four others have each column of B.
  double a[2][16], b[2][16];
  for (int l = 0; l < 4; ++l) {
    for (int half = 0; half < 2; ++half) {
      const int in_row = lane / 4 * 4 + l;
      for (int w = 0; w < 4; ++w) {
        const Position at = fragment_a_element(in_row, w, half);
        a[at.row / 8][at.column] = number_of<T>(operands, in_row, w, half);
      }
      for (int column = 0; column < 2; ++column) {
        const int in_column = fragment_c_element(lane, column).column * 4 + l;
        for (int w = 0; w < 2; ++w) {
          b[column][fragment_b_element(in_column, w, half).row] =
              number_of<T>(operands, in_column, w + 4, half);
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    double sum = 0;
    for (int k = 0; k < 16; ++k) sum += a[i / 2][k] * b[i % 2][k];
    c.value[i] = static_cast<float>(static_cast<double>(c.value[i]) + sum);
  }
}

}  // namespace fastrnn::cuda::emulated
