// Kernels that move rows: inputs with dropout, previous states as each step saw them, states in and out,
// columns of W_ih for tokens.
#pragma once

#include "cuda/kernels/dropout.h"
#include "cuda/kernels/pointwise.h"

namespace fastrnn::cuda {

// to[t,b,:] = from[t,b,:], or what preceded it in processing order; 0 where the row has ended; times a
// dropout mask. So padding is zeros in products over all steps, whatever the caller's array holds there. May
// be in place unless `previous`.
template <class From, class To>
struct GatherRows {
  static constexpr const char* kName = "gather_rows";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index width = 0;
    Rows<const From> from;
    Rows<To> to;
    bool previous = false;        // the state that entered the step, instead of what it made
    const To* initial = nullptr;  // [B,width]: what entered the first step, or null = zeros
    KeyedDropout mask;
  };

  // One thread has 4 neighbouring units, which share a draw; a mask begins anew with each direction.
  static constexpr Index kUnits = 4;
  static Index groups(Index width, Index directions) {
    return directions * ceil_div(width / directions, kUnits);
  }

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const Dropout& dropout = p.mask.dropout;
    const Index width = p.width / dropout.directions, groups = ceil_div(width, kUnits);
    for_times(x, p.walk.steps, p.walk.batch, dropout.directions * groups, [&](Index t, Index b, Index group) {
      const Index length = p.walk.length(b), direction = group >= groups ? 1 : 0;
      const Index unit = (group - direction * groups) * kUnits, first = direction * width + unit;
      const From* from = nullptr;
      const To* initial = nullptr;
      if (t < length) {
        const RowAt row(p.walk, b, p.walk.reverse ? length - 1 - t : t);
        if (!p.previous) {
          from = p.from.at(t, b) + first;
        } else if (!row.starts_piece()) {
          if (row.step > 0) {
            from = p.from.at(row.previous_time(), b) + first;
          } else if (p.initial) {
            initial = p.initial + b * p.width + first;
          }
        }
      }
      To* to = p.to.at(t, b) + first;
      const Philox4 draw = p.mask ? dropout.draw(*p.mask.key, t, b, direction, unit) : Philox4{};
      FRNN_UNROLL
      for (int j = 0; j < kUnits; ++j) {
        if (unit + j >= width) break;
        Compute<To> value = from ? static_cast<Compute<To>>(widen(from[j])) : initial ? widen(initial[j]) : 0;
        if (p.mask) value = dropout.apply(draw.word[j], value);
        to[j] = narrow<To>(value);
      }
    });
  }
};

// A state [rows,width] in or out of a call: to[to_rows[b]] = from[from_rows[b]], or 0 where a boundary stands
// before the row's first step. May be in place with the same rows.
template <class From, class To>
struct CopyState {
  static constexpr const char* kName = "copy_state";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index width = 0;
    const From* from = nullptr;  // null = zeros
    To* to = nullptr;
    StateRows from_rows, to_rows;
    bool entering = false;  // is this the state that enters the first step?
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, p.walk.batch, p.width, [&](Index b, Index unit) {
      const RowAt row(p.walk, b, 0);
      const bool zero = !p.from || (p.entering && row.active() && row.starts_piece());
      const Index source = p.from_rows.at(b), target = p.to_rows.at(b);
      p.to[target * p.width + unit] = narrow<To>(
          zero ? Compute<To>(0) : static_cast<Compute<To>>(widen(p.from[source * p.width + unit])));
    });
  }
};

// Gradient of the initial state: what left the first step backward, or, for a row of no steps, that of the
// final state. to [B,width] = step + more.
template <class T>
struct InitialGradient {
  static constexpr const char* kName = "initial_gradient";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    Walk walk;
    Index width = 0;
    const Compute<T>* step = nullptr;
    const Compute<T>* more = nullptr;  // or null
    const T* final_state = nullptr;    // or null
    T* to = nullptr;
    Noise noise;  // of h: its recurrent dropout masks `step`
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_units(x, p.walk.batch, p.width, [&](Index b, Index unit) {
      const RowAt row(p.walk, b, 0);
      const Index i = b * p.width + unit;
      Compute<T> value = 0;
      if (!row.active()) {
        if (p.final_state) value = widen(p.final_state[i]);
      } else if (!row.starts_piece()) {
        value = p.noise.masked(b, unit, p.step[i]);
        if (p.more) value += p.more[i];
      }
      p.to[i] = narrow<T>(value);
    });
  }
};

// W_ih x for x given as tokens: to[i] [columns] = the token's column of W_ih.
template <class T>
struct GatherTokens {
  static constexpr const char* kName = "gather_tokens";
  static constexpr int kThreads = kPointwiseThreads;

  struct Params {
    const std::int64_t* tokens = nullptr;  // [T,B]
    Index steps = 0, batch = 0;
    Index columns = 0;          // G*H
    Index vocabulary = 0;       // I
    const T* weight = nullptr;  // W_ih (G*H, I), or transposed
    Index token_stride = 0;     // from one token's column to the next, and
    Index column_stride = 0;    // along it: 1, I; transposed: G*H, 1
    Compute<T>* to = nullptr;
    Index to_stride = 0;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    for_times(x, p.steps, p.batch, p.columns, [&](Index t, Index b, Index column) {
      const Index row = t * p.batch + b;
      const Index token = clamp(p.tokens[row], 0, p.vocabulary - 1);
      p.to[row * p.to_stride + column] = widen(p.weight[token * p.token_stride + column * p.column_stride]);
    });
  }
};

// to [columns,rows] = from [rows,columns], by tiles, so that both sides are read and written along rows.
template <class T>
struct Transpose {
  static constexpr const char* kName = "transpose";
  static constexpr int kThreads = 256;
  static constexpr int kTile = 32;

  struct Params {
    Index rows = 0, columns = 0;
    const T* from = nullptr;
    T* to = nullptr;
  };

  struct Layout {
    SharedLayout shared;
    Slot<T> tile = shared.template take<T>(kTile * (kTile + 1));
  };
  static FRNN_HOST_DEVICE Index tiles(Index rows, Index columns) {
    return ceil_div(rows, kTile) * ceil_div(columns, kTile);
  }

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const auto tile = x.view(Layout().tile);
    const int column = x.thread() % kTile, first = x.thread() / kTile;
    const auto across = static_cast<unsigned>(ceil_div(p.columns, kTile));
    const auto all = static_cast<unsigned>(tiles(p.rows, p.columns));
    for (auto i = static_cast<unsigned>(x.block()); i < all; i += static_cast<unsigned>(x.blocks())) {
      const Index row0 = Index{i / across} * kTile, column0 = Index{i % across} * kTile;
      for (int row = first; row < kTile; row += kThreads / kTile) {
        if (row0 + row < p.rows && column0 + column < p.columns) {
          tile.store(row * (kTile + 1) + column, p.from[(row0 + row) * p.columns + column0 + column]);
        }
      }
      x.sync();
      for (int row = first; row < kTile; row += kThreads / kTile) {
        if (column0 + row < p.columns && row0 + column < p.rows) {
          p.to[(column0 + row) * p.rows + row0 + column] = tile.load(column * (kTile + 1) + row);
        }
      }
      x.sync();
    }
  }
};

}  // namespace fastrnn::cuda
