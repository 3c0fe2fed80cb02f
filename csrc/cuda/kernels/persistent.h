// What the kernels share that run all steps of a sequence with the recurrent weights on the chip.
//
// A group of P CTAs, one or a cluster, has n rows of the batch for the whole sequence; a rank of it has U
// neighbouring units, with all their gates, and of W_hh what these need. So gates, c and the reserve are a
// rank's own affair, and one vector a step travels. In the product z = A v, A is the rank's share of W_hh and
// v holds the rows of the batch as its columns; a warp has whole 16x16 pieces of A, the first of them in
// registers and the others in shared memory, where they lie as mma wants them.
//
// A persistent kernel has at most one CTA on a multiprocessor, whose registers it fills.
#pragma once

#include "cuda/fragment.h"
#include "cuda/kernels/pointwise.h"
#include "cuda/kernels/split_float.h"

namespace fastrnn::cuda {

inline constexpr int kPersistentThreads = 256;
inline constexpr int kPersistentWarps = kPersistentThreads / kWarp;
inline constexpr int kPiece = 16;  // rows and depth of one mma

// What stands for a value of T on tensor cores: itself, or the sum of two bfloat16.
template <class T>
struct Multiplied {
  using Operand = T;
  static constexpr int kPlanes = 1;
  static FRNN_DEVICE void split(T value, T (&planes)[1]) { planes[0] = value; }
};
template <>
struct Multiplied<float> {
  using Operand = bfloat16_t;
  static constexpr int kPlanes = 2;
  static FRNN_DEVICE void split(float value, bfloat16_t (&planes)[2]) {
    split_float(value, planes[0], planes[1]);
  }
};

// What is fixed when a kernel is compiled, in pieces of an mma: a warp has `tall` of them below each other
// (M), keeps the first `deep` along the depth (K) in registers, and multiplies `wide` groups of 8 columns (N)
// at once, 1 or 2.
template <int tall, int deep, int wide>
struct Tile {
  static constexpr int kTall = tall, kDeep = deep, kWide = wide;
  static constexpr int kColumns = 8 * wide;
  static constexpr int kAtOnce = 2 / wide;  // pieces along the depth that one ldmatrix brings
  static_assert(wide == 1 || wide == 2, "an ldmatrix has four matrices");
  static_assert(deep % kAtOnce == 0, "");
};

// The tiles that are compiled. In as many registers, two planes have half the depth.
template <class T>
struct Tiles {
  static constexpr int kHalves = Multiplied<T>::kPlanes;
  using Narrow = Tile<4, 8 / kHalves, 1>;
  using Wide = Tile<4, 8 / kHalves, 2>;
  // For rows that are a multiple of 48, not of 64.
  using Low = Tile<3, kHalves == 1 ? 10 : 4, 1>;
  // For the 768 rows that eight warps have in the backward of H = 768, in a cluster of 16. With half of the
  // pieces in registers, shared memory has room for the parts of dh.
  using Tall = Tile<6, kHalves == 1 ? 6 : 2, 1>;
};

// How the product of a CTA is divided among its warps: `down` of them along the rows, the others along the
// depth, whose sums are added in their order.
struct ProductShape {
  int rows = 0, depth = 0;  // of A, multiples of 16; the depth of 32
  int columns = 0;
  int down = 1;
  int share = 0;  // pieces along the depth of one warp; even

  FRNN_HOST_DEVICE constexpr ProductShape(int rows_, int depth_, int columns_, int tall)
      : rows(rows_), depth(depth_), columns(columns_) {
    while (down < kPersistentWarps && down * tall * kPiece < rows) down *= 2;
    share = ceil_div(depth / kPiece, across());
    share += share % 2;
  }
  FRNN_HOST_DEVICE constexpr bool fits(int tall) const { return down * tall * kPiece >= rows; }
  FRNN_HOST_DEVICE constexpr int across() const { return kPersistentWarps / down; }
  FRNN_HOST_DEVICE constexpr int rest(int deep) const { return share > deep ? share - deep : 0; }

  // Sums in shared memory, [across][columns][sum_pitch]: the pitch spreads a fragment over all banks.
  FRNN_HOST_DEVICE constexpr int sum_pitch() const { return rows + 4; }
  FRNN_HOST_DEVICE constexpr int sums() const { return across() * columns * sum_pitch(); }
  // The vectors, [planes][columns][vector_pitch]: an odd multiple of 16 bytes, for ldmatrix.
  FRNN_HOST_DEVICE constexpr int vector_pitch() const { return depth + 8; }
  FRNN_HOST_DEVICE constexpr int vectors(int planes) const { return planes * columns * vector_pitch(); }
};

// The fragments of A in shared memory, of all warps.
template <class T, class Tile>
FRNN_HOST_DEVICE constexpr int fragments_of_rest(const ProductShape& shape) {
  return kPersistentThreads * shape.rest(Tile::kDeep) * Tile::kTall * Multiplied<T>::kPlanes;
}

// The share of A that a warp has, and its products.
template <class T, class Tile, class X>
class Weights {
 public:
  using M = Multiplied<T>;
  using Operand = typename M::Operand;
  using Words = Pack<std::uint32_t, 4>;  // of a fragment, in one load
  static constexpr int kPlanes = M::kPlanes, kTall = Tile::kTall, kDeep = Tile::kDeep, kWide = Tile::kWide;

  // Calls row(i).piece(k).at(j) for element k + j of row i of A, within the shape; k is a multiple of 16, and
  // j from 0 to 15.
  template <class Shared, class Row>
  FRNN_DEVICE void load(X& x, const ProductShape& shape, const Shared& rest, Row row) {
    row0_ = x.warp() % shape.down * kTall * kPiece;
    slice_ = x.warp() / shape.down;
    first_ = slice_ * shape.share;
    const int left = shape.depth / kPiece - first_;
    share_ = left < 0 ? 0 : left < shape.share ? left : shape.share;
    rest0_ = x.warp() * shape.rest(kDeep) * kTall * kPlanes * kWarp + x.lane();
    FRNN_UNROLL
    for (int tall = 0; tall < kTall; ++tall) {
      const int at = row0_ + tall * kPiece;
      const bool has = at < shape.rows;
      const decltype(row(0)) rows[2] = {row(has ? at + fragment_a_element(x.lane(), 0, 0).row : 0),
                                        row(has ? at + fragment_a_element(x.lane(), 1, 0).row : 0)};
      const int most = has ? share_ : 0;
      FRNN_UNROLL
      for (int step = 0; step < kDeep; ++step) {
        Words words[kPlanes] = {};
        if (step < most) fragment(x, rows, step, words);
        FRNN_UNROLL
        for (int plane = 0; plane < kPlanes; ++plane) kept_[step][tall][plane] = words[plane];
      }
      FRNN_ROLLED
      for (int step = kDeep; step < share_; ++step) {
        Words words[kPlanes] = {};
        if (has) fragment(x, rows, step, words);
        FRNN_UNROLL
        for (int plane = 0; plane < kPlanes; ++plane) rest.store(place(step, tall, plane), words[plane]);
      }
    }
  }

  // sums = A times all columns of `vectors`, this warp's share of the rows and the depth.
  template <class Rest, class Vectors, class Sums>
  FRNN_DEVICE void multiply(X& x, const ProductShape& shape, const Rest& rest, const Vectors& vectors,
                            const Sums& sums) const {
    FRNN_ROLLED
    for (int column = 0; column < shape.columns; column += Tile::kColumns) {
      FragmentC sum[kTall][kWide] = {};
      const int row = kWide == 2 ? x.lane() / 16 * 8 + x.lane() % 8 : x.lane() % 8;
      const int along = kWide == 2 ? x.lane() / 8 % 2 * 8 : x.lane() / 8 * 8;
      const auto mine = vectors.from((column + row) * shape.vector_pitch() + along);
      const auto columns = [&](int step, Matrices<Operand>(&four)[kPlanes]) {
        FRNN_UNROLL
        for (int plane = 0; plane < kPlanes; ++plane) {
          four[plane] = x.ldmatrix_x4(mine.from(plane * shape.vectors(1) + (first_ + step) * kPiece));
        }
      };
      // The pieces along the depth that one ldmatrix brings; words_of(step, tall, plane) are those of A.
      const auto add = [&](int step, auto words_of) {
        Matrices<Operand> four[kPlanes];
        columns(step, four);
        FRNN_UNROLL
        for (int i = 0; i < Tile::kAtOnce; ++i) {
          FRNN_UNROLL
          for (int tall = 0; tall < kTall; ++tall) {
            Words words[kPlanes];
            FRNN_UNROLL
            for (int plane = 0; plane < kPlanes; ++plane) words[plane] = words_of(step + i, tall, plane);
            multiply(x, words, four, i, sum[tall]);
          }
        }
      };
      FRNN_UNROLL
      for (int step = 0; step < kDeep; step += Tile::kAtOnce) {
        if (step < share_) add(step, [&](int at, int tall, int plane) { return kept_[at][tall][plane]; });
      }
      FRNN_ROLLED
      for (int step = kDeep; step < share_; step += Tile::kAtOnce) {
        add(step, [&](int at, int tall, int plane) { return rest.load(place(at, tall, plane)); });
      }
      FRNN_UNROLL
      for (int tall = 0; tall < kTall; ++tall) {
        FRNN_UNROLL
        for (int wide = 0; wide < kWide; ++wide) {
          FRNN_UNROLL
          for (int i = 0; i < 4; ++i) {
            const Position at = fragment_c_element(x.lane(), i);
            const int to = row0_ + tall * kPiece + at.row, of = column + 8 * wide + at.column;
            if (row0_ + tall * kPiece < shape.rows) {
              sums.store((slice_ * shape.columns + of) * shape.sum_pitch() + to, sum[tall][wide].value[i]);
            }
          }
        }
      }
    }
  }

 private:
  // This lane's part of a piece of A.
  template <class Row>
  FRNN_DEVICE void fragment(X& x, const Row (&rows)[2], int step, Words (&words)[kPlanes]) const {
    const int k = (first_ + step) * kPiece;
    const decltype(rows[0].piece(0)) pieces[2] = {rows[0].piece(k), rows[1].piece(k)};
    FRNN_UNROLL
    for (int word = 0; word < 4; ++word) {
      FRNN_UNROLL
      for (int half = 0; half < 2; ++half) {
        Operand planes[kPlanes];
        M::split(pieces[word % 2].at(fragment_a_element(x.lane(), word, half).column), planes);
        FRNN_UNROLL
        for (int plane = 0; plane < kPlanes; ++plane) {
          words[plane].value[word] |= std::uint32_t{planes[plane].bits} << (16 * half);
        }
      }
    }
  }

  FRNN_DEVICE int place(int step, int tall, int plane) const {
    return rest0_ + (((step - kDeep) * kTall + tall) * kPlanes + plane) * kWarp;
  }
  // One piece of A times the columns at hand; of two planes all products but the least.
  static FRNN_DEVICE void multiply(X& x, const Words (&words)[kPlanes],
                                   const Matrices<Operand> (&four)[kPlanes], int i, FragmentC (&sum)[kWide]) {
    FRNN_UNROLL
    for (int plane = 0; plane < kPlanes; ++plane) {
      const std::uint32_t* const w = words[plane].value;
      const FragmentA<Operand> a = {{w[0], w[1], w[2], w[3]}};
      FRNN_UNROLL
      for (int other = 0; other < kPlanes - plane; ++other) {
        FRNN_UNROLL
        for (int wide = 0; wide < kWide; ++wide) {
          const int at = 2 * (i * kWide + wide);
          x.mma(sum[wide], a, FragmentB<Operand>{{four[other].word[at], four[other].word[at + 1]}});
        }
      }
    }
  }

  Words kept_[kDeep][kTall][kPlanes];
  int row0_ = 0, slice_ = 0;   // of this warp: its first row, and its place along the depth,
  int first_ = 0, share_ = 0;  // where it has these pieces
  int rest0_ = 0;              // where this lane's words in shared memory begin
};

// The elements that a thread has of an array [columns][units]. With units a multiple of 16, columns of 8, the
// lanes of a warp stay together, and 8 neighbouring lanes have 8 neighbouring units of one column.
struct Elements {
  int unit, column, units, columns, next_unit, next_column;

  FRNN_DEVICE Elements(int thread, int units_, int columns_)
      : unit(thread % units_),
        column(thread / units_),
        units(units_),
        columns(columns_),
        next_unit(kPersistentThreads % units_),
        next_column(kPersistentThreads / units_) {}

  template <class Body>
  FRNN_DEVICE void each(Body body) const {
    int u = unit, c = column;
    FRNN_ROLLED
    while (c < columns) {
      body(c, u);
      u += next_unit;
      c += next_column;
      if (u >= units) {
        u -= units;
        ++c;
      }
    }
  }
};

// The sum, in order, of `count` values that lie `stride` apart.
template <class Shared>
FRNN_DEVICE float sum_in_order(const Shared& from, int at, int stride, int count) {
  float sum = from.load(at);
  FRNN_ROLLED
  for (int i = 1; i < count; ++i) sum += from.load(at + i * stride);
  return sum;
}

// The first `count` of neighbouring weights, `stride` apart, then zeros.
template <class T>
struct WeightPiece {
  const T* data;
  Index stride;
  int count;
  FRNN_DEVICE T at(int i) const { return i < count ? data[i * stride] : T{}; }
};

// The group of a CTA: one direction, and some rows of the batch.
struct PersistentShape {
  int hidden = 0, batch = 0;  // H, B
  int directions = 1;
  int ranks = 1;    // P
  int columns = 8;  // n; a multiple of the tile's

  // U. All ranks together have whole pieces of depth, and an even number of them: they are taken in pairs.
  FRNN_HOST_DEVICE constexpr int units() const {
    const int unit = ranks == 1 ? 2 * kPiece : kPiece;
    return ceil_div(hidden, ranks * unit) * unit;
  }
  FRNN_HOST_DEVICE constexpr int padded() const { return ranks * units(); }
  FRNN_HOST_DEVICE constexpr int groups() const { return ceil_div(batch, columns); }
  FRNN_HOST_DEVICE constexpr int blocks() const { return directions * groups() * ranks; }
};

// Where a CTA stands among the groups: the rows and units that it has, and which of them its threads have.
struct PersistentPlace {
  int rank, direction, units;
  Index first_unit, first_row;
  Index hidden, batch;  // of all
  Elements own;

  template <class X>
  FRNN_DEVICE PersistentPlace(const X& x, const PersistentShape& s)
      : rank(x.block() % s.ranks),
        direction(x.block() / s.ranks / s.groups()),
        units(s.units()),
        first_unit(Index{rank} * units),
        first_row(Index{x.block() / s.ranks % s.groups()} * s.columns),
        hidden(s.hidden),
        batch(s.batch),
        own(x.thread(), units, s.columns) {}

  FRNN_DEVICE Index row(int column) const { return first_row + column; }
  FRNN_DEVICE Index unit(int own_unit) const { return first_unit + own_unit; }
  FRNN_DEVICE bool has_row(int column) const { return row(column) < batch; }
  FRNN_DEVICE bool has_unit(int own_unit) const { return unit(own_unit) < hidden; }

  // Calls body(column, unit) for this thread's share of those that are no padding.
  template <class Body>
  FRNN_DEVICE void each_there_is(Body body) const {
    own.each([&](int column, int own_unit) {
      if (has_row(column) && has_unit(own_unit)) body(column, own_unit);
    });
  }

  // The length of every row, 0 past the batch.
  template <class X, class Shared>
  FRNN_DEVICE void store_lengths(const X& x, const Walk& walk, const Shared& lengths) const {
    for (int i = x.thread(); i < own.columns; i += kPersistentThreads) {
      lengths.store(i, has_row(i) ? static_cast<int>(walk.length(row(i))) : 0);
    }
  }
};

// What both passes have in the shared memory of a CTA, beside what is their own.
template <class T, class Tile>
struct PersistentLayout {
  SharedLayout shared;
  Slot<float> sums, state;
  Slot<int> lengths;
  Slot<MBarrier> full;
  Slot<Pack<std::uint32_t, 4>> rest;

  FRNN_HOST_DEVICE constexpr PersistentLayout(const PersistentShape& s, const ProductShape& p)
      : sums(shared.take<float>(p.sums())),
        state(shared.take<float>(s.units() * s.columns)),
        lengths(shared.take<int>(s.columns)),
        full(shared.take<MBarrier>(2)),
        rest(shared.take<Pack<std::uint32_t, 4>>(fragments_of_rest<T, Tile>(p))) {}
};

// How the ranks of a group wait for each other: for the bytes that the others send. Those for iteration i,
// from 1 on, are counted by barrier i % 2, in its phase (i-1)/2. A group of one CTA neither sends nor waits.
template <class X>
class Exchange {
 public:
  using Barriers = typename X::template Shared<MBarrier>;

  FRNN_DEVICE Exchange(X& x, const Barriers& full, int ranks) : x_(x), full_(full), ranks_(ranks) {
    if constexpr (X::kClusters) {
      if (x.thread() == 0) {
        x.mbarrier_init(full, 1);
        x.mbarrier_init(full.from(1), 1);
        x.fence_mbarrier_init();
      }
    }
  }

  // The whole cluster: before the first message, and after the last wait.
  FRNN_DEVICE void meet() const {
    if constexpr (X::kClusters) {
      if (ranks_ == 1) return;
      x_.cluster_arrive();
      x_.cluster_wait();
    }
  }
  FRNN_DEVICE void expect(int i, int bytes) const {
    if constexpr (X::kClusters) {
      if (ranks_ > 1 && x_.thread() == 0) x_.mbarrier_arrive_expect_tx(full_.from(i % 2), bytes);
    }
  }
  FRNN_DEVICE void wait(int i) const {
    if constexpr (X::kClusters) {
      if (ranks_ > 1) x_.mbarrier_wait_parity(full_.from(i % 2), (i - 1) / 2 % 2);
    }
  }
  // `value` to the same place in the memory of a rank, for iteration i.
  template <class Shared, class V>
  FRNN_DEVICE void send(const Shared& to, int rank, const V& value, int i) const {
    if constexpr (X::kClusters) {
      x_.st_async(x_.map_rank(to, rank), value, x_.map_rank(full_.from(i % 2), rank));
    }
  }

 private:
  X& x_;
  Barriers full_;
  int ranks_;
};

}  // namespace fastrnn::cuda
