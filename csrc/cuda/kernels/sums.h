// Sums over all rows of dG, in an order that depends on the shape alone: no atomics.
#pragma once

#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

// First stage of a column sum: partial[chunk][column] = sum over the chunk's rows, in order, of a (times b).
template <class T>
struct ColumnSum {
  static constexpr const char* kName = "column_sum";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Index rows = 0, columns = 0;
    Index chunk = 1;  // rows
    const T* a = nullptr;
    Index a_stride = 0;
    const T* b = nullptr;  // [rows,columns] or null
    Compute<T>* partial = nullptr;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const Index chunks = (p.rows + p.chunk - 1) / p.chunk;
    for_units(x, chunks, p.columns, [&](Index chunk, Index column) {
      const Index first = chunk * p.chunk, last = first + p.chunk < p.rows ? first + p.chunk : p.rows;
      Compute<T> sum = 0;
      for (Index row = first; row < last; ++row) {
        const Compute<T> value = widen(p.a[row * p.a_stride + column]);
        sum += p.b ? value * widen(p.b[row * p.columns + column]) : value;
      }
      p.partial[chunk * p.columns + column] = sum;
    });
  }
};

// Second stage: the chunks in order.
template <class T>
struct FinishSum {
  static constexpr const char* kName = "finish_sum";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Index chunks = 0, columns = 0;
    const Compute<T>* partial = nullptr;
    T* to = nullptr;    // [columns]
    T* also = nullptr;  // the same, or null
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, 1, p.columns, [&](Index, Index column) {
      Compute<T> sum = 0;
      for (Index chunk = 0; chunk < p.chunks; ++chunk) sum += p.partial[chunk * p.columns + column];
      p.to[column] = narrow<T>(sum);
      if (p.also) p.also[column] = narrow<T>(sum);
    });
  }
};

// Gradient of W_ih for tokens: column v is the sum, in order, of dG's rows whose token is v. One CTA has one
// token and kThreads columns of dG: it looks through all tokens, kThreads at a time, and adds the rows that
// it finds.
template <class T>
struct TokenGradient {
  static constexpr const char* kName = "token_gradient";
  static constexpr int kThreads = 256;

  struct Params {
    const std::int64_t* tokens = nullptr;  // [rows]
    Index rows = 0;                        // T*B
    Index columns = 0, vocabulary = 0;     // G*H, I
    const T* dg = nullptr;                 // rows dg_stride apart; 0 at padding, where any token may stand
    Index dg_stride = 0;
    T* gradient = nullptr;  // (G*H, I), out
  };

  struct Layout {
    SharedLayout shared;
    Slot<std::uint32_t> found = shared.take<std::uint32_t>(kThreads / kWarp);  // bits of 32 tokens each
  };
  static FRNN_HOST_DEVICE Index tiles(Index columns, Index vocabulary) {
    return vocabulary * ((columns + kThreads - 1) / kThreads);
  }

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const auto found = x.view(Layout().found);
    const auto across = static_cast<unsigned>((p.columns + kThreads - 1) / kThreads);
    const auto all = static_cast<unsigned>(tiles(p.columns, p.vocabulary));
    for (auto i = static_cast<unsigned>(x.block()); i < all; i += static_cast<unsigned>(x.blocks())) {
      const Index token = i / across, column = Index{i % across} * kThreads + x.thread();
      Compute<T> sum = 0;
      for (Index first = 0; first < p.rows; first += kThreads) {
        const Index mine = first + x.thread();
        const std::uint32_t bits = x.ballot(mine < p.rows && p.tokens[mine] == token);
        if (x.lane() == 0) found.store(x.warp(), bits);
        x.sync();
        for (int word = 0; word < kThreads / kWarp; ++word) {
          std::uint32_t rest = found.load(word);
          for (int bit = 0; rest != 0; ++bit, rest >>= 1) {
            if ((rest & 1u) && column < p.columns) {
              sum += widen(p.dg[(first + word * kWarp + bit) * p.dg_stride + column]);
            }
          }
        }
        x.sync();
      }
      if (column < p.columns) p.gradient[column * p.vocabulary + token] = narrow<T>(sum);
    }
  }
};

// float as the sum of two bfloat16, three times over, so that one product of three times the depth is
// hi hi + hi lo + lo hi:  to [rows,3*columns] = hi hi lo (first operand) or hi lo hi (second).
// With depth_rows the copies lie below one another instead: to [3*rows,columns].
struct SplitFloat {
  static constexpr const char* kName = "split_float";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Index rows = 0, columns = 0;
    const float* from = nullptr;
    Index from_stride = 0;
    bfloat16_t* to = nullptr;
    bool second = false, depth_rows = false;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, p.rows, p.columns, [&](Index row, Index column) {
      const float value = p.from[row * p.from_stride + column];
      const bfloat16_t hi = narrow<bfloat16_t>(value);
      // What overflows or is no number has no rest.
      const float rest = value - widen(hi);
      const bfloat16_t lo = narrow<bfloat16_t>(rest - rest == 0 ? rest : 0);
      const Index at = p.depth_rows ? row * p.columns + column : 3 * row * p.columns + column;
      const Index next = p.depth_rows ? p.rows * p.columns : p.columns;
      p.to[at] = hi;
      p.to[at + next] = p.second ? lo : hi;
      p.to[at + 2 * next] = p.second ? hi : lo;
    });
  }
};

}  // namespace fastrnn::cuda
