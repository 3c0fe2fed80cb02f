// The register-tiled product under every kernel.
//
// A tile is `Rows` rows by `Panels` panels of `Gates` vectors, all sums in registers.  It starts from sums in
// `z` (a few KB on the stack, in L1), runs over k and leaves the sums there; what a cell does before and
// after is an ordinary loop over z, so it is compiled once and not once per tile shape.  Storing and loading
// z costs two moves a vector against K multiply-adds.  `z` is [row][panel][gate][lanes].
//
// Tile shapes: as many sums as there are registers for (kAccumulators).  With few rows left, more panels at
// once keep enough independent chains in flight to hide the latency of fma; K is never split, because the
// order of a sum must not depend on the shape of the tile.
#pragma once

#include "cpu/dot.h"

namespace fastrnn::cpu::FRNN_ISA {

inline constexpr int kMaxRows = 8;

// Panels side by side in the main tile: four vectors of one or two gates, else one panel.
constexpr int main_panels(int gates) { return gates <= 2 ? 4 / gates : 1; }
constexpr int main_rows(int gates) {
  const int rows = kAccumulators / (gates * main_panels(gates));
  return rows < kMaxRows ? rows : kMaxRows;
}
// The most rows in one group: with two vectors of weights for each of their values.
constexpr int most_rows(int gates) {
  const int rows = kAccumulators / (gates == 3 ? 3 : 2);
  return rows < kMaxRows ? rows : kMaxRows;
}
constexpr int panels_for(int gates, int rows) {
  int panels = gates <= 2 ? 4 : 2;
  while (panels > 1 && rows * panels * gates > kAccumulators) panels /= 2;
  return panels;
}

// Weights that a thread goes through in one product and that exceed this come from memory at every step, and
// are asked for ahead: while the tiles of some panels run, each k fetches one line of the panels after them.
// From the last cache up, asking ahead gains nothing and costs 2 %.
inline constexpr Index kFarBytes = 4 * 1024 * 1024;

// What a tile fetches meanwhile: at each k a line, or one for each of its gates if these are half of them,
// `step` elements after the last; with 0, always the same.
template <class W>
struct Ahead {
  const W* first;
  Index step;
};

// Sums that stand side by side for each row and unit: a GRU computes four with its three gates.
constexpr int entry_of(int gates) { return gates == 3 ? 4 : gates; }

// Where a tile's sums are: those of row r, panel p and gate g at first + r * row + (p * entry_of(Gates) + g)
// * lanes.
template <class T>
struct Sums {
  T* first;
  Index row;
};

template <class W>
using TileFn = void (*)(const Row<W>* const* a, Index step, const W* w, Index panel_stride, Index depth,
                        Sums<Compute<W>> z, Ahead<W> ahead);

// The gates [First, First + Count) of a panel's Gates.
template <class W, int Rows, int Panels, int Gates, int First = 0, int Count = Gates>
void tile(const Row<W>* const* a, Index step, const W* w, Index panel_stride, Index depth, Sums<Compute<W>> z,
          Ahead<W> ahead) {
  constexpr int lanes = Vec<Compute<W>>::lanes, vector = lanes * kGroup<W>;
  using D = Dot<W>;
  typename D::Sum acc[Rows][Panels][Count];
  const Row<W>* row[Rows];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    row[r] = a[r];
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 8
      for (int g = 0; g < Count; ++g) {
        acc[r][p][g] = D::begin(z.first + r * z.row + (p * entry_of(Gates) + First + g) * lanes,
                                w + p * panel_stride, First + g, Gates);
      }
    }
  }
  const W* group = w + panel_header<W>(Gates, lanes);
  const Index groups = (depth + kGroup<W> - 1) / kGroup<W>;
  Index k = 0;
  do {  // depth is at least 1: without that knowledge GCC keeps a second copy of the sums in memory
    // With fewer rows the weights themselves come as fast as they can.
    if constexpr (Rows > 2) {
#pragma GCC unroll 8
      for (int i = 0; i < (Count < Gates ? Count : 1); ++i)
        __builtin_prefetch(ahead.first + k * ahead.step + i * vector, 0, 2);
    }
    if constexpr (D::parts == 1) {
      typename D::Factor weight[Panels][Count];
#pragma GCC unroll 8
      for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 8
        for (int g = 0; g < Count; ++g)
          weight[p][g] = D::weights(group + p * panel_stride + (k * Gates + First + g) * vector, 0);
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const typename D::Factor value = D::value(row[r], k, step, 0);
#pragma GCC unroll 8
        for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 8
          for (int g = 0; g < Count; ++g) acc[r][p][g] = D::add(value, weight[p][g], acc[r][p][g]);
        }
      }
    } else {
      // Rows in registers and one vector of weights at a time: that is one register less, for widening.
#pragma GCC unroll 2
      for (int part = 0; part < D::parts; ++part) {
        typename D::Factor value[Rows];
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) value[r] = D::value(row[r], k, step, part);
#pragma GCC unroll 8
        for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 8
          for (int g = 0; g < Count; ++g) {
            const typename D::Factor weight =
                D::weights(group + p * panel_stride + (k * Gates + First + g) * vector, part);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) acc[r][p][g] = D::add(value[r], weight, acc[r][p][g]);
          }
        }
      }
    }
  } while (++k < groups);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 8
      for (int g = 0; g < Count; ++g) {
        D::end(acc[r][p][g], row[r], w + p * panel_stride, First + g,
               z.first + r * z.row + (p * entry_of(Gates) + First + g) * lanes);
      }
    }
  }
}

// More rows than sums of all gates fit in registers: half the gates, then the others. From afar each half
// fetches what the next one reads.
template <class W, int Rows, int Gates>
void tile_in_halves(const Row<W>* const* a, Index step, const W* w, Index panel_stride, Index depth,
                    Sums<Compute<W>> z, Ahead<W> ahead) {
  constexpr int half = Gates / 2;
  constexpr Index lanes = Vec<Compute<W>>::lanes, vector = lanes * kGroup<W>;
  const Index far = ahead.step ? Gates * vector : 0;
  const W* others = w + panel_header<W>(Gates, lanes) + half * vector;
  tile<W, Rows, 1, Gates, 0, half>(a, step, w, panel_stride, depth, z, {others, far});
  tile<W, Rows, 1, Gates, half, half>(a, step, w, panel_stride, depth, z, {ahead.first, far});
}

// For each shape the tile that computes it, if there is one.
template <class W, int Gates>
struct Tiles {
  TileFn<W> fn[3][kMaxRows];  // [log2 panels][rows - 1]

  template <int Panels, int Row>
  static constexpr TileFn<W> pick() {
    if constexpr (Row * Panels * Gates <= kAccumulators) {
      return tile<W, Row, Panels, Gates>;
    } else if constexpr (Panels == 1 && Row <= most_rows(Gates)) {
      return tile_in_halves<W, Row, Gates>;
    } else {
      return nullptr;
    }
  }
  template <int Panels, int Log>
  constexpr void fill() {
    fn[Log][0] = pick<Panels, 1>();
    fn[Log][1] = pick<Panels, 2>();
    fn[Log][2] = pick<Panels, 3>();
    fn[Log][3] = pick<Panels, 4>();
    fn[Log][4] = pick<Panels, 5>();
    fn[Log][5] = pick<Panels, 6>();
    fn[Log][6] = pick<Panels, 7>();
    fn[Log][7] = pick<Panels, 8>();
  }
  constexpr Tiles() : fn() {
    fill<1, 0>();
    fill<2, 1>();
    if constexpr (panels_for(Gates, 1) == 4) fill<4, 2>();
  }
};
template <class W, int Gates>
inline constexpr Tiles<W, Gates> tiles{};

// A group of rows and panels that one tile covers.
struct TileAt {
  Index row;
  Index panel;
  int rows;
  int panels;
  Index next;   // the panels that come after these for all rows
  Index tiles;  // how many tiles have met these panels before
  Index count;  // of all panels that the rows meet
};

// z += A W over the whole depth, which may be 0.
template <int Gates, class W>
FRNN_INLINE void multiply(const Operand<W>& op, TileAt at, Sums<Compute<W>> z) {
  if (op.depth == 0) return;
  constexpr Index lanes = Vec<Compute<W>>::lanes, vector = lanes * kGroup<W>;
  const Index panel_stride = panel_size<W>(op.depth, Gates, lanes);
  // A tile fetches one Gates-th of a panel, so that after so many the next group of panels is there.
  const bool far = at.count * panel_stride > kFarBytes / static_cast<Index>(sizeof(W)) &&
                   at.next != at.panel && at.tiles < Gates * panels_for(Gates, 1);
  const Index fetched = far ? at.tiles * ((op.depth + kGroup<W> - 1) / kGroup<W>)*vector : 0;
  const Ahead<W> ahead{op.panels + at.next * panel_stride + fetched, far ? vector : 0};
  tiles<W, Gates>.fn[at.panels >> 1][at.rows - 1](op.a + at.row, op.step, op.panels + at.panel * panel_stride,
                                                  panel_stride, op.depth, z, ahead);
}
// The sums as for_tiles lays them out; where its entries are larger than the product's, panel by panel.
template <int Gates, int Entry = entry_of(Gates), class W>
FRNN_INLINE void multiply(const Operand<W>& op, TileAt at, Compute<W>* z) {
  constexpr Index entry = Index{Entry} * Vec<Compute<W>>::lanes;
  const int panels = at.panels;
  Sums<Compute<W>> sums{z, panels * entry};
  if constexpr (Entry == entry_of(Gates)) {
    multiply<Gates>(op, at, sums);
  } else {
    at.panels = 1;
    for (int p = 0; p < panels; ++p, ++at.panel, sums.first += entry) multiply<Gates>(op, at, sums);
  }
}

// For every tile: start(row, unit, n, z) for each row and panel, products(at, z), then finish(row, unit, n,
// z) for each, one `finish` after the other. unit is the panel's first unit and n how many of its lanes are
// real (AllLanes or a number).  A tile has Gates sums for each row and unit, and z room for entry_of(Gates).
template <int Gates, class T, class Start, class Products, class... Finish>
FRNN_INLINE void for_tiles(Index rows, Range range, Index units, Start start, Products products,
                           Finish... finish) {
  constexpr int lanes = Vec<T>::lanes;
  constexpr int entries = kAccumulators / Gates > most_rows(Gates) ? kAccumulators / Gates : most_rows(Gates);
  alignas(64) T z[entries * entry_of(Gates) * lanes];

  auto each = [&](const TileAt& at, auto&& visit) {
    T* entry = z;
    for (int r = 0; r < at.rows; ++r) {
      for (int p = 0; p < at.panels; ++p, entry += entry_of(Gates) * lanes) {
        const Index unit = (at.panel + p) * lanes;
        if (units - unit >= lanes) {
          visit(at.row + r, unit, AllLanes{}, entry);
        } else {
          visit(at.row + r, unit, units - unit, entry);
        }
      }
    }
  };
  const Index count = range.last - range.first;
  Index next = 0, met = 0;
  // The panels [first, last) for the rows [row, end), in groups of `group` rows.
  auto cover = [&](Index first, Index last, Index row, Index end, int group) {
    int wide = panels_for(Gates, group);
    for (; first < last; first += wide) {
      while (first + wide > last) wide /= 2;
      for (Index r = row; r < end; r += group) {
        const TileAt at{r, first, group, wide, next, met++, count};
        each(at, start);
        products(at, static_cast<T*>(z));
        (each(at, finish), ...);
      }
    }
  };
  // Few rows in one group, so that weights are read once; more in groups as equal as can be: a group of few
  // waits for weights that it uses only so often.
  const int most = rows <= most_rows(Gates) ? most_rows(Gates) : main_rows(Gates);
  const Index groups = (rows + most - 1) / most, larger = groups ? rows % groups : 0;
  const int size = static_cast<int>(groups ? rows / groups : 0);
  const Index border = larger * (size + 1);
  // A few panels for all rows before the next ones, so that they are read from afar once; where rows are one
  // group, as many as a tile has.
  const Index together = rows <= most_rows(Gates) ? panels_for(Gates, size) : panels_for(Gates, 1);
  for (Index done = 0; done < count; done += together) {
    const Index n = count - done < together ? count - done : together;
    const Index first = range.backwards ? range.last - done - n : range.first + done;
    const Index left = count - done - n;
    next = range.backwards ? first - (left < together ? left : together) : left ? first + n : first;
    met = 0;
    if (border) cover(first, first + n, 0, border, size + 1);
    if (border < rows) cover(first, first + n, border, rows, size);
  }
}

template <class T>
FRNN_INLINE Vec<T> at(const T* z, int gate) {
  return Vec<T>::load(z + gate * Vec<T>::lanes);
}
template <class T>
FRNN_INLINE void put(T* z, int gate, Vec<T> x) {
  x.store(z + gate * Vec<T>::lanes);
}

// How the tile of a step forward starts: `gates` sums W_ih x + b, of a token here, or b alone where the step
// multiplies x too.  Then the lines that the tile's end writes are cold: they arrive while the products run.
template <class W>
FRNN_INLINE auto input_sums(const StepForward<W>& p, int gates) {
  using T = Compute<W>;
  constexpr Index lanes = Vec<T>::lanes, vector = lanes * kGroup<W>;
  const Index panel_stride = panel_size<W>(p.vocabulary, gates, lanes);
  const Index following = p.panels.backwards ? -lanes : lanes;
  return [&p, gates, panel_stride, following](Index row, Index unit, auto n, T* z) {
    if (p.pre) {
      for (int g = 0; g < gates; ++g) put(z, g, load(p.pre[row] + g * p.units + unit, n));
      return;
    }
    __builtin_prefetch(p.h[row] + unit, 1);
    if (p.c) __builtin_prefetch(p.c[row] + unit, 1);
    const W* column = p.tokens ? p.columns + unit / lanes * panel_stride : nullptr;
    for (int g = 0; g < gates; ++g) {
      if (p.gates) __builtin_prefetch(p.gates[row] + g * p.units + unit, 1);
      const Vec<T> bias = p.bias ? load(p.bias + g * p.units + unit, n) : Vec<T>(T(0));
      put(z, g, column ? Dot<W>::gather(bias, column, p.tokens[row], g, gates) : bias);
    }
    if (!column) return;
    const Index next = (unit + following) / lanes;
    if (next < p.panels.first || next >= p.panels.last) return;
    column = p.columns + next * panel_stride + panel_header<W>(gates, lanes);
    for (int g = 0; g < gates; ++g)
      __builtin_prefetch(column + (p.tokens[row] / kGroup<W> * gates + g) * vector);
  };
}

// How the tile of a step backward starts: what its end reads and writes, `gates` of the saved ones and
// `columns` of dG for each unit, lies too scattered to come by itself, and arrives while the products run.
template <class T>
FRNN_INLINE auto products_alone(const StepBackward<T>& p, int gates, int columns) {
  return [&p, gates, columns](Index row, Index unit, auto, T* z) {
    put(z, 0, Vec<T>(T(0)));
    __builtin_prefetch(p.dy[row] + unit);
    for (int g = 0; g < gates; ++g) __builtin_prefetch(p.gates[row] + g * p.units + unit);
    for (int g = 0; g < columns; ++g) __builtin_prefetch(p.dg[row] + g * p.units + unit, 1);
    if (p.c) __builtin_prefetch(p.c[row] + unit);
    if (p.c_prev) __builtin_prefetch(p.c_prev[row] + unit);
    if (p.h_prev) __builtin_prefetch(p.h_prev[row] + unit);
    if (p.candidate) __builtin_prefetch(p.candidate[row] + unit);
  };
}
// The gradient of h, of which z has the products.
template <class T, class N>
FRNN_INLINE Vec<T> incoming(const StepBackward<T>& p, Index row, Index unit, N n, const T* z) {
  return at(z, 0) + load(p.dy[row] + unit, n) + load(p.extra[row] + unit, n);
}

template <class W, int Gates>
void product_gates(const Product<W>& p) {
  using T = Compute<W>;
  for_tiles<Gates, T>(
      p.rows, p.panels, p.units,
      [&](Index row, Index unit, auto n, T* z) {
        for (int g = 0; g < Gates; ++g) {
          const Index column = g * p.units + unit;
          __builtin_prefetch(p.out[row] + column, 1);
          Vec<T> start(T(0));
          if (p.bias) start = load(p.bias + column, n);
          if (p.add) start = load(p.add[row] + column, n);
          if (p.add_more) start = start + load(p.add_more[row] + column, n);
          put(z, g, start);
        }
      },
      [&](TileAt tile, T* z) { multiply<Gates>(p.operand, tile, z); },
      [&](Index row, Index unit, auto n, T* z) {
        for (int g = 0; g < Gates; ++g) store(p.out[row] + g * p.units + unit, at(z, g), n);
      });
}

// Whole panels where the sums stand: at a depth of 256 the way by z costs 5 % of a tile. A panel that is not
// whole goes by it, since a tile reads and writes whole vectors.
template <class T>
void add_product(const AddProduct<T>& p) {
  constexpr int lanes = Vec<T>::lanes;
  const Range range = p.panels;
  Index whole = p.units / lanes < range.last ? p.units / lanes : range.last;
  if (whole < range.first) whole = range.first;
  const auto out = [&p](Index row, Index unit) { return p.out + row * p.stride + unit; };
  for_tiles<1, T>(
      p.rows, {range.first, whole}, p.units, [](Index, Index, auto, T*) {},
      [&](TileAt tile, T*) { multiply<1>(p.operand, tile, {out(tile.row, tile.panel * lanes), p.stride}); });
  for_tiles<1, T>(
      p.rows, {whole, range.last}, p.units,
      [&](Index row, Index unit, auto n, T* z) { put(z, 0, load(out(row, unit), n)); },
      [&](TileAt tile, T* z) { multiply<1>(p.operand, tile, z); },
      [&](Index row, Index unit, auto n, T* z) { store(out(row, unit), at(z, 0), n); });
}

template <class W>
void product(const Product<W>& p) {
  switch (p.gates) {
    case 1: return product_gates<W, 1>(p);
    case 2: return product_gates<W, 2>(p);
    case 3: return product_gates<W, 3>(p);
    default: return product_gates<W, 4>(p);
  }
}

template <class W>
void gather(const Gather<W>& p) {
  using V = Vec<Compute<W>>;
  constexpr int lanes = V::lanes;
  for (Index row = 0; row < p.rows; ++row) {
    for (Index panel = p.range.first; panel < p.range.last; ++panel) {
      const W* w = p.panels + panel * panel_size<W>(p.depth, p.gates, lanes);
      const Index unit = panel * lanes;
      const Index n = p.units - unit < lanes ? p.units - unit : lanes;
      for (int g = 0; g < p.gates; ++g) {
        const V start = p.bias ? load(p.bias + g * p.units + unit, n) : V(0);
        store(p.out[row] + g * p.units + unit, Dot<W>::gather(start, w, p.tokens[row], g, p.gates), n);
      }
    }
  }
}

// Rows of a block are far away by the time that weight gradients read them: so many vectors of a row are read
// one after the other, and rows that far ahead are asked for.
inline constexpr int kAdjacent = 4;
inline constexpr Index kRowsAhead = 8;

template <class T>
void pack_rows(const PackRows<T>& p) {
  constexpr int lanes = Vec<T>::lanes;
  for (Index first = p.panels.first; first < p.panels.last; first += kAdjacent) {
    const Index last = first + kAdjacent < p.panels.last ? first + kAdjacent : p.panels.last;
    for (Index k = 0; k < p.depth; ++k) {
      const Index ahead = k + kRowsAhead < p.depth ? k + kRowsAhead : k;
      for (Index panel = first; panel < last; ++panel) {
        __builtin_prefetch(p.rows[ahead] + panel * lanes);
        load(p.rows[k] + panel * lanes, p.units - panel * lanes).store(p.out + (panel * p.depth + k) * lanes);
      }
    }
  }
}

// Lane j of v[i] and lane i of v[j] change places: zipping the first half of the vectors with the second
// moves one bit of a lane's number to the vector's, so as many passes as there are bits.
template <class T>
FRNN_INLINE void transpose(Vec<T>* v) {
  constexpr int lanes = Vec<T>::lanes;
#pragma GCC unroll 4
  for (int pass = 1; pass < lanes; pass *= 2) {
    Vec<T> zipped[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      zipped[2 * i] = zip_low(v[i], v[i + lanes / 2]);
      zipped[2 * i + 1] = zip_high(v[i], v[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) v[i] = zipped[i];
  }
}

template <class T>
void pack_columns(const PackColumns<T>& p) {
  constexpr int lanes = Vec<T>::lanes;
  T* out = p.out + p.panels.first * panel_size<T>(p.depth, p.gates, lanes);
  for (Index unit = p.panels.first * lanes; unit < p.panels.last * lanes; unit += lanes) {
    const Index n = p.units - unit < lanes ? p.units - unit : lanes;
    for (Index g = 0; g < p.gates; ++g) {
      const T* rows = p.from + ((g + p.begin) % p.gates * p.units + unit) * p.depth;
      for (Index k = 0; k < p.depth; k += lanes) {
        const Index depth = p.depth - k < lanes ? p.depth - k : lanes;
        Vec<T> v[lanes];
#pragma GCC unroll 16
        for (int lane = 0; lane < lanes; ++lane)
          v[lane] = lane < n ? load(rows + lane * p.depth + k, depth) : Vec<T>(T(0));
        transpose(v);
        for (Index i = 0; i < depth; ++i) v[i].store(out + ((k + i) * p.gates + g) * lanes);
      }
    }
    out += panel_size<T>(p.depth, p.gates, lanes);
  }
}

// The sums of `Vectors` vectors of columns from `unit` on; n columns of each are real.
template <int Vectors, class T, class N>
FRNN_INLINE void column_sums(const ColumnSum<T>& p, Index unit, N n) {
  constexpr int lanes = Vec<T>::lanes;
  Vec<T> sum[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) sum[v] = load(p.out + unit + v * lanes, n);
  for (Index row = 0; row < p.rows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const Index column = unit + v * lanes;
      const Vec<T> a = load(p.a + row * p.stride + column, n);
      sum[v] = p.b ? fma(a, load(p.b[row] + column, n), sum[v]) : sum[v] + a;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) store(p.out + unit + v * lanes, sum[v], n);
}

template <class T>
void column_sum(const ColumnSum<T>& p) {
  constexpr int lanes = Vec<T>::lanes;
  Index unit = p.first;
  for (; unit + kAdjacent * lanes <= p.last; unit += kAdjacent * lanes)
    column_sums<kAdjacent>(p, unit, AllLanes{});
  for (; unit < p.last; unit += lanes) column_sums<1>(p, unit, p.last - unit);
}

}  // namespace fastrnn::cpu::FRNN_ISA
