#include "cuda/persistent.h"

#include <algorithm>

namespace fastrnn::cuda {
namespace {

// The model, in cycles of one step of an H100 or H200. Nothing of it was measured with these kernels: it
// ranks what is possible, and scripts/gpu_check.sh is to correct it.
constexpr double kOneCta = 330, kCluster = 600;  // latencies of a step that nothing overlaps
constexpr double kMma = 1.6;                     // one m16n8k16 of a multiprocessor: 62 % of the peak
constexpr double kSharedBytes = 128;             // of a multiprocessor, a cycle
constexpr double kExchangeBytes = 16;            // into or out of a multiprocessor, a cycle
constexpr double kUnits = 400;                   // gates and state of one unit in every thread

template <class Kernel, class Tile>
double cycles_of(const PersistentShape& s) {
  const ProductShape p = Kernel::product(s);
  const double planes = Kernel::kPlanes, products = planes == 2 ? 3 : 1;
  const double pieces = kPersistentWarps * p.share;
  const double mma = pieces * Tile::kTall * (s.columns / 8) * products * kMma;
  const double weights = static_cast<double>(s.columns / Tile::kColumns) * kPersistentWarps *
                         p.rest(Tile::kDeep) * Tile::kTall * planes * kPiece * kPiece * 2;
  const double vectors = pieces * kPiece * s.columns * 2 * planes;
  const double sums = 2.0 * p.sums() * 4;
  const double exchange = s.ranks > 1 ? s.columns * s.padded() * 2 * planes / kExchangeBytes : 0;
  const int own = (s.units() * s.columns + kPersistentThreads - 1) / kPersistentThreads;
  return (s.ranks > 1 ? kCluster : kOneCta) + own * kUnits +
         std::max({mma, (weights + vectors + sums) / kSharedBytes, exchange});
}

// All of one cell and type: calls consider(launch, cycles) for what fits a CTA.
template <class Cell, class T, class Consider>
void each_launch(const Request& request, const Limits& limits, Consider consider) {
  for (const TileKind kind : {TileKind::narrow, TileKind::wide, TileKind::low}) {
    for (const int ranks : {1, 2, 4, 8, 16}) {
      for (const int columns : {8, 16, 32, 64}) {
        with_tile<T>(kind, [&](auto tile) {
          using Kernel = PersistentForward<Cell, T, decltype(tile)>;
          const Persistence launch{ranks, columns, kind};
          const PersistentShape s = persistent_shape(request, launch);
          if (columns % tile.kColumns != 0) return;
          if (!Kernel::product(s).fits(tile.kTall)) return;
          if (typename Kernel::Layout(s).shared.bytes() > limits.shared_per_block) return;
          consider(launch, cycles_of<Kernel, decltype(tile)>(s));
        });
      }
    }
  }
}

template <class T, class Consider>
void each_launch(const Request& request, const Limits& limits, Consider consider) {
  with_persistent_cell(request.network.first.cell,
                       [&](auto cell) { each_launch<decltype(cell), T>(request, limits, consider); });
}

}  // namespace

PersistentChoice choose_persistent(const Request& request, const Limits& limits) {
  const Wish& wish = request.wish;
  PersistentChoice best;
  const auto consider = [&](const Persistence& launch, double cycles) {
    if (wish.strategy && (*wish.strategy == Strategy::cta) != (launch.ranks == 1)) return;
    if (wish.ranks && wish.ranks != launch.ranks) return;
    if (wish.columns && wish.columns != launch.columns) return;
    if (wish.tile && *wish.tile != launch.tile) return;
    int at_once = limits.processors;
    for (int i = 0; i < 4; ++i) {
      if (launch.ranks == 2 << i) at_once = limits.capability() >= 90 ? limits.clusters[i] : 0;
    }
    if (at_once == 0) return;
    const PersistentShape s = persistent_shape(request, launch);
    const int groups = s.groups() * s.directions;
    const double all = cycles * ((groups + at_once - 1) / at_once);
    // More ranks, which come later, have to gain something: they are what others cannot use.
    if (best.launch.ranks && all >= (launch.ranks > best.launch.ranks ? 0.9 : 1.0) * best.cycles) return;
    best = {launch, all};
  };
  switch (request.dtype) {
    case DType::float32: each_launch<float>(request, limits, consider); break;
    case DType::float16: each_launch<half_t>(request, limits, consider); break;
    case DType::bfloat16: each_launch<bfloat16_t>(request, limits, consider); break;
    case DType::float64: break;
  }
  return best;
}

}  // namespace fastrnn::cuda
