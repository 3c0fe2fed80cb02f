// Sums over all rows of dG, in an order that depends on the shape alone: no atomics.
#pragma once

#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

// A gradient = sum, or += sum.
template <class T>
FRNN_DEVICE void store_sum(T& gradient, Compute<T> sum, bool add) {
  gradient = narrow<T>(add ? widen(gradient) + sum : sum);
}

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
    const Index chunks = ceil_div(p.rows, p.chunk);
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
    T* also = nullptr;  // [also_columns]: the first ones again, or null
    Index also_columns = 0;
    bool add = false;  // += instead of =
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, 1, p.columns, [&](Index, Index column) {
      Compute<T> sum = 0;
      for (Index chunk = 0; chunk < p.chunks; ++chunk) sum += p.partial[chunk * p.columns + column];
      store_sum(p.to[column], sum, p.add);
      if (column < p.also_columns) store_sum(p.also[column], sum, p.add);
    });
  }
};

// Gradient of W_ih for tokens: column v is the sum, in order, of dG's rows whose token is v. So rows are
// sorted by token first: the work is that of the rows, however many tokens there are.
//
// What is sorted is a key for each row, its token and then its number: no two are equal, so that there is one
// order, whoever finds it. A number out of range counts as the nearest token, as it does in forward.
FRNN_HOST_DEVICE std::uint64_t token_key(Index token, Index row) {
  return static_cast<std::uint64_t>(token) << 32 | static_cast<std::uint64_t>(row);
}
FRNN_HOST_DEVICE Index row_of(std::uint64_t key) { return static_cast<Index>(key & 0xffffffffu); }

// How many of sorted keys [first,last) are below a key.
template <class KeyAt>
FRNN_DEVICE Index keys_below(std::uint64_t key, Index first, Index last, KeyAt key_at) {
  Index low = first, high = last;
  while (low < high) {
    const Index middle = (low + high) / 2;
    if (key_at(middle) < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - first;
}

// One pass of the sort: runs of 2^shift keys become runs of twice that. Each key goes by as many places as
// there are keys below it, in its own run and in the one it is merged with.
struct SortTokens {
  static constexpr const char* kName = "sort_tokens";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Index rows = 0;
    int shift = 0;
    const std::int64_t* tokens = nullptr;  // [rows], from 0 to vocabulary - 1: what the first pass reads
    Index vocabulary = 0;
    const std::uint64_t* from = nullptr;  // [rows], in sorted runs; null in the first pass
    std::uint64_t* to = nullptr;          // [rows]
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const auto key_at = [&](Index i) {
      return p.from ? p.from[i] : token_key(clamp(p.tokens[i], 0, p.vocabulary - 1), i);
    };
    const auto from_start = [&](Index run) { return run << p.shift < p.rows ? run << p.shift : p.rows; };
    for_units(x, 1, p.rows, [&](Index, Index i) {
      const std::uint64_t key = key_at(i);
      const Index run = i >> p.shift, other = run ^ 1;
      const Index below = keys_below(key, from_start(other), from_start(other + 1), key_at);
      p.to[((run & ~Index{1}) << p.shift) + (i - (run << p.shift)) + below] = key;
    });
  }
};

// starts[v] = where the keys of token v begin; starts[vocabulary] = rows.
struct TokenStarts {
  static constexpr const char* kName = "token_starts";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Index rows = 0, vocabulary = 0;
    const std::uint64_t* keys = nullptr;  // [rows], sorted
    Index* starts = nullptr;              // [vocabulary + 1]
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, 1, p.vocabulary + 1, [&](Index, Index token) {
      p.starts[token] = keys_below(token_key(token, 0), 0, p.rows, [&](Index i) { return p.keys[i]; });
    });
  }
};

template <class T>
struct TokenGradient {
  static constexpr const char* kName = "token_gradient";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Index columns = 0, vocabulary = 0;    // G*H, I
    const std::uint64_t* keys = nullptr;  // [rows], sorted
    const Index* starts = nullptr;        // [vocabulary + 1]
    const T* dg = nullptr;                // rows dg_stride apart; 0 at padding, where any token may stand
    Index dg_stride = 0;
    T* gradient = nullptr;  // (G*H, I)
    bool add = false;       // += instead of =
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, p.vocabulary, p.columns, [&](Index token, Index column) {
      const Index last = p.starts[token + 1];
      Compute<T> sum = 0;
      for (Index first = p.starts[token]; first < last; first += kAtOnce) {
        Compute<T> values[kAtOnce];
        FRNN_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          values[i] = first + i < last ? widen(p.dg[row_of(p.keys[first + i]) * p.dg_stride + column]) : 0;
        }
        FRNN_UNROLL
        for (int i = 0; i < kAtOnce; ++i) sum += values[i];
      }
      store_sum(p.gradient[column * p.vocabulary + token], sum, p.add);
    });
  }

 private:
  static constexpr int kAtOnce = 8;  // rows under way from memory together; they are added in order
};

}  // namespace fastrnn::cuda
