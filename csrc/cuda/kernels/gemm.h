// Our own matrix products, for where there is no cuBLAS and for the emulator; gemm.h says what they compute.
// Any sizes, strides and alignments: what a tile has beyond the edges is read as zero and not written. A CTA
// computes one tile of C through the whole depth, so each sum is one chain, in an order that depends on
// nothing else.
#pragma once

#include "cells/math.h"
#include "core/half.h"
#include "cuda/context.h"
#include "cuda/fragment.h"

namespace fastrnn::cuda {

// One operand as it lies in memory: `outer` rows of `inner` neighbouring elements.
template <class T>
struct GemmOperand {
  const T* data = nullptr;
  Index stride = 0;
  Index outer = 0, inner = 0;
  bool transposed = false;
};

// 64x64 tiles of C, 4x4 values a thread, depth in pieces of 16. A piece is loaded into registers while the
// one before is multiplied out of shared memory, and stored there once all threads are done with that one.
template <class T>
struct GemmFma {
  static constexpr const char* kName = "gemm_fma";
  static constexpr int kThreads = 256;
  static constexpr int kTile = 64, kDepth = 16, kValues = 4;
  static constexpr int kPitch = kTile + 4;                  // [kDepth][kPitch]; spreads both ways of storing
  static constexpr int kLoads = kTile * kDepth / kThreads;  // of each operand, a thread
  using Four = Pack<T, kValues>;

  struct Params {
    Index rows = 0, columns = 0, depth = 0;
    GemmOperand<T> a, b;
    T* c = nullptr;
    Index c_stride = 0;
    bool add = false;
  };

  struct Layout {
    SharedLayout shared;
    Slot<T> a = shared.template take<T>(kDepth * kPitch), b = shared.template take<T>(kDepth * kPitch);
  };
  static FRNN_HOST_DEVICE Index tiles(Index rows, Index columns) {
    return ceil_div(rows, kTile) * ceil_div(columns, kTile);
  }

  // Where element i of this thread's loads lies: along the depth, and across it. Neighbouring threads read
  // neighbouring elements of memory.
  static FRNN_DEVICE Position place(int thread, int i, bool depth_inner) {
    if (depth_inner) return {thread % kDepth, thread / kDepth + i * (kThreads / kDepth)};
    return {thread / kTile + i * (kThreads / kTile), thread % kTile};
  }
  // `first` of the tile across, `k` along the depth.
  static FRNN_DEVICE void load(const GemmOperand<T>& from, bool depth_inner, Index first, Index k, int thread,
                               T (&values)[kLoads]) {
    FRNN_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const Position at = place(thread, i, depth_inner);
      const Index outer = depth_inner ? first + at.column : k + at.row;
      const Index inner = depth_inner ? k + at.row : first + at.column;
      values[i] = outer < from.outer && inner < from.inner ? from.data[outer * from.stride + inner] : T(0);
    }
  }
  template <class Shared>
  static FRNN_DEVICE void store(const Shared& to, bool depth_inner, int thread, const T (&values)[kLoads]) {
    FRNN_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const Position at = place(thread, i, depth_inner);
      to.store(at.row * kPitch + at.column, values[i]);
    }
  }

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const Layout layout;
    const auto a = x.view(layout.a), b = x.view(layout.b);
    const auto a4 = x.view(Slot<Four>{layout.a.offset, layout.a.count / kValues});
    const auto b4 = x.view(Slot<Four>{layout.b.offset, layout.b.count / kValues});
    const bool a_inner = !p.a.transposed, b_inner = p.b.transposed;  // does the depth lie along memory?
    const int thread = x.thread(), my_row = thread / 16 * kValues, my_column = thread % 16 * kValues;
    const auto across = static_cast<unsigned>(ceil_div(p.columns, kTile));
    const auto all = static_cast<unsigned>(tiles(p.rows, p.columns));
    // There is a CTA for each tile. Without the loop, ptxas gives this kernel 102 registers, in double 158;
    // with it, 80 and 98.
    for (auto tile = static_cast<unsigned>(x.block()); tile < all;
         tile += static_cast<unsigned>(x.blocks())) {
      const Index row0 = Index{tile / across} * kTile, column0 = Index{tile % across} * kTile;
      T sum[kValues][kValues] = {};
      T next_a[kLoads], next_b[kLoads];
      load(p.a, a_inner, row0, 0, thread, next_a);
      load(p.b, b_inner, column0, 0, thread, next_b);
      for (Index k = 0; k < p.depth; k += kDepth) {
        store(a, a_inner, thread, next_a);
        store(b, b_inner, thread, next_b);
        x.sync();
        if (k + kDepth < p.depth) {
          load(p.a, a_inner, row0, k + kDepth, thread, next_a);
          load(p.b, b_inner, column0, k + kDepth, thread, next_b);
        }
        FRNN_UNROLL
        for (int j = 0; j < kDepth; ++j) {
          const Four left = a4.load((j * kPitch + my_row) / kValues);
          const Four right = b4.load((j * kPitch + my_column) / kValues);
          FRNN_UNROLL
          for (int row = 0; row < kValues; ++row) {
            FRNN_UNROLL
            for (int column = 0; column < kValues; ++column) {
              sum[row][column] = cells::fma(left.value[row], right.value[column], sum[row][column]);
            }
          }
        }
        x.sync();
      }
      FRNN_UNROLL
      for (int row = 0; row < kValues; ++row) {
        FRNN_UNROLL
        for (int column = 0; column < kValues; ++column) {
          const Index i = row0 + my_row + row, j = column0 + my_column + column;
          if (i >= p.rows || j >= p.columns) continue;
          T& c = p.c[i * p.c_stride + j];
          c = p.add ? c + sum[row][column] : sum[row][column];
        }
      }
    }
  }
};

// 16-bit operands on tensor cores, fp32 sums: 64x64 tiles of C by 4 warps, 32x32 each; the next piece of
// depth is copied to one half of shared memory while the warps multiply the other.
template <class T>
struct GemmMma {
  static constexpr const char* kName = "gemm_mma";
  static constexpr int kThreads = 128;
  static constexpr int kTile = 64, kDepth = 32, kWarpTile = 32;
  static constexpr int kChunk = 8;  // elements of one copy, 16 bytes
  // Rows of shared memory are an odd multiple of 16 bytes, so that the 8 rows of a matrix lie in different
  // banks.
  static constexpr int kPitchDepth = kDepth + kChunk, kPitchAcross = kTile + kChunk;
  static constexpr int kOperand = kTile * kPitchDepth;  // either way of lying fits
  static_assert(kDepth * kPitchAcross <= kOperand, "");

  struct Params {
    Index rows = 0, columns = 0, depth = 0;
    GemmOperand<T> a, b;
    void* c = nullptr;  // T, or float if wide
    Index c_stride = 0;
    bool wide = false, add = false;
  };

  struct Layout {
    SharedLayout shared;
    Slot<T> a = shared.template take<T>(2 * kOperand), b = shared.template take<T>(2 * kOperand);
  };
  static FRNN_HOST_DEVICE Index tiles(Index rows, Index columns) {
    return ceil_div(rows, kTile) * ceil_div(columns, kTile);
  }

  // Copies kTile across and kDepth along the depth, lying as in memory.
  template <class X, class Shared>
  static FRNN_DEVICE void copy(X& x, const GemmOperand<T>& from, bool depth_inner, bool aligned, Index first,
                               Index k, const Shared& to) {
    // Rows of 4 or 8 chunks: a division by a number known so late is some twenty instructions.
    static_assert(kDepth == 4 * kChunk && kTile == 8 * kChunk, "");
    const int chunks_shift = depth_inner ? 2 : 3, pitch = depth_inner ? kPitchDepth : kPitchAcross;
    const Index outer0 = depth_inner ? first : k, inner0 = depth_inner ? k : first;
    for (int i = x.thread(); i < kTile * kDepth / kChunk; i += kThreads) {
      const int row = i >> chunks_shift, column = (i & ((1 << chunks_shift) - 1)) * kChunk;
      const Index outer = outer0 + row, inner = inner0 + column;
      const Index left = outer < from.outer ? from.inner - inner : 0;
      const int count = left >= kChunk ? kChunk : left > 0 ? static_cast<int>(left) : 0;
      const T* source = count > 0 ? from.data + outer * from.stride + inner : from.data;
      if (aligned) {
        x.cp_async_16(to.from(row * pitch + column), source, count * static_cast<int>(sizeof(T)));
      } else {
        for (int j = 0; j < kChunk; ++j) to.store(row * pitch + column + j, j < count ? source[j] : T{0});
      }
    }
  }
  static FRNN_DEVICE bool is_aligned(const GemmOperand<T>& from) {
    return reinterpret_cast<std::uintptr_t>(from.data) % 16 == 0 && from.stride % kChunk == 0;
  }

  // Four 8x8 matrices: matrix m begins `along[m]` along the depth and `across[m]` across it. Rows of a matrix
  // are across the depth; where memory has it the other way round, each is transposed as it is loaded.
  template <class X, class Shared>
  static FRNN_DEVICE Matrices<T> matrices(X& x, const Shared& from, bool depth_inner, int along, int across) {
    const int row = x.lane() % 8;
    if (depth_inner) return x.ldmatrix_x4(from.from((across + row) * kPitchDepth + along));
    return x.ldmatrix_x4_trans(from.from((along + row) * kPitchAcross + across));
  }

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const Layout layout;
    const auto a = x.view(layout.a), b = x.view(layout.b);
    const bool a_inner = !p.a.transposed, b_inner = p.b.transposed;
    const bool a_aligned = is_aligned(p.a), b_aligned = is_aligned(p.b);
    const int matrix = x.lane() / 8, warp_row = x.warp() / 2 * kWarpTile,
              warp_column = x.warp() % 2 * kWarpTile;
    const auto across = static_cast<unsigned>(ceil_div(p.columns, kTile)),
               tile = static_cast<unsigned>(x.block());
    const Index row0 = Index{tile / across} * kTile, column0 = Index{tile % across} * kTile;
    const Index pieces = ceil_div(p.depth, kDepth);
    FragmentC sum[2][4] = {};
    const auto fetch = [&](Index piece) {
      const int half = static_cast<int>(piece % 2) * kOperand;
      if (piece < pieces) {
        copy(x, p.a, a_inner, a_aligned, row0, piece * kDepth, a.from(half));
        copy(x, p.b, b_inner, b_aligned, column0, piece * kDepth, b.from(half));
      }
      x.cp_async_commit();
    };
    fetch(0);
    for (Index piece = 0; piece < pieces; ++piece) {
      fetch(piece + 1);
      x.cp_async_wait(1);
      x.sync();
      const auto left = a.from(static_cast<int>(piece % 2) * kOperand);
      const auto right = b.from(static_cast<int>(piece % 2) * kOperand);
      FRNN_UNROLL
      for (int k = 0; k < kDepth; k += 16) {
        FragmentA<T> rows[2];
        FRNN_UNROLL
        for (int i = 0; i < 2; ++i) {
          rows[i] = matrices(x, left, a_inner, k + matrix / 2 * 8, warp_row + i * 16 + matrix % 2 * 8);
        }
        FRNN_UNROLL
        for (int j = 0; j < 2; ++j) {
          const Matrices<T> four =
              matrices(x, right, b_inner, k + matrix % 2 * 8, warp_column + j * 16 + matrix / 2 * 8);
          const FragmentB<T> columns[2] = {{{four.word[0], four.word[1]}}, {{four.word[2], four.word[3]}}};
          FRNN_UNROLL
          for (int i = 0; i < 2; ++i) {
            x.mma(sum[i][2 * j], rows[i], columns[0]);
            x.mma(sum[i][2 * j + 1], rows[i], columns[1]);
          }
        }
      }
      x.sync();
    }
    FRNN_UNROLL
    for (int i = 0; i < 2; ++i) {
      FRNN_UNROLL
      for (int j = 0; j < 4; ++j) {
        write(x, p, row0 + warp_row + i * 16, column0 + warp_column + j * 8, sum[i][j]);
      }
    }
  }

  // A fragment to C, from this row and column on.
  template <class X>
  static FRNN_DEVICE void write(const X& x, const Params& p, Index row0, Index column0,
                                const FragmentC& sum) {
    FRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Position at = fragment_c_element(x.lane(), i);
      const Index row = row0 + at.row, column = column0 + at.column;
      if (row >= p.rows || column >= p.columns) continue;
      const Index c = row * p.c_stride + column;
      const float value = sum.value[i];
      if (p.wide) {
        float* to = static_cast<float*>(p.c) + c;
        *to = p.add ? *to + value : value;
      } else {
        T* to = static_cast<T*>(p.c) + c;
        *to = narrow<T>(p.add ? widen(*to) + value : value);
      }
    }
  }
};

}  // namespace fastrnn::cuda
