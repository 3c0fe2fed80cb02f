#include "cuda/persistent.h"

#include <algorithm>

namespace fastrnn::cuda {
namespace {

// The model: cycles of one step on an H100 or H200. None of its figures was measured with these kernels. It
// ranks the launches that are possible; what scripts/gpu_check.sh measures is to correct it.
constexpr double kOneCta = 330, kCluster = 600;  // latencies of a step that nothing overlaps
constexpr double kMma = 1.6;                     // one m16n8k16 of a multiprocessor: 62 % of the peak
constexpr double kSharedBytes = 128;             // of a multiprocessor, a cycle
constexpr double kExchangeBytes = 16;            // into or out of a multiprocessor, a cycle
constexpr double kUnits = 400;                   // gates and state of one unit in every thread

template <class Kernel>
double cycles_of(const PersistentShape& s) {
  using Tile = typename Kernel::Tile;
  const ProductShape p = Kernel::product(s);
  const double planes = Kernel::kPlanes, products = planes == 2 ? 3 : 1;
  const double pieces = kPersistentWarps * p.share;
  const double mma = pieces * Tile::kTall * (s.columns / 8) * products * kMma;
  const double weights = static_cast<double>(s.columns / Tile::kColumns) * kPersistentWarps *
                         p.rest(Tile::kDeep) * Tile::kTall * planes * kPiece * kPiece * 2;
  const double vectors = pieces * kPiece * s.columns * 2 * planes;
  const double sums = 2.0 * p.sums() * 4;
  const double exchange = s.ranks > 1 ? Kernel::exchanged(s) / kExchangeBytes : 0;
  const int own = ceil_div(s.units() * s.columns, kPersistentThreads);
  return (s.ranks > 1 ? kCluster : kOneCta) + own * kUnits +
         std::max({mma, (weights + vectors + sums) / kSharedBytes, exchange});
}

// Keeps the fastest of the launches that the wish allows and the device can run.
class Chooser {
 public:
  Chooser(const Request& request, const Wish& wish, const Limits& limits)
      : request_(request), wish_(wish), limits_(limits) {}

  template <class Kernel>
  void consider(const PersistentLaunch& launch) {
    using Tile = typename Kernel::Tile;
    if (wish_.strategy && *wish_.strategy != launch.strategy()) return;
    if (wish_.ranks && wish_.ranks != launch.ranks) return;
    if (wish_.columns && wish_.columns != launch.columns) return;
    if (wish_.tile && *wish_.tile != launch.tile) return;
    const PersistentShape s = persistent_shape(request_, launch);
    if (launch.columns % Tile::kColumns != 0 || !Kernel::product(s).fits(Tile::kTall)) return;
    if (typename Kernel::Layout(s).shared.bytes() > limits_.shared_per_block) return;
    int at_once = limits_.processors;
    for (int i = 0; i < 4; ++i) {
      if (launch.ranks == 2 << i) at_once = limits_.capability() >= 90 ? limits_.clusters[i] : 0;
    }
    if (at_once == 0) return;
    const int groups = s.groups() * s.directions;
    const double cycles = cycles_of<Kernel>(s) * ceil_div(groups, at_once);
    // More ranks, which come later, have to gain something: they are what others cannot use.
    if (best_.launch.ranks && cycles >= (launch.ranks > best_.launch.ranks ? 0.9 : 1.0) * best_.cycles)
      return;
    best_ = {launch, cycles};
  }

  const PersistentChoice& best() const { return best_; }

 private:
  const Request& request_;
  const Wish& wish_;
  const Limits& limits_;
  PersistentChoice best_;
};

// Calls body(T{}) for an element type that persistent kernels have.
template <class Body>
void with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::float32: return body(float{});
    case DType::float16: return body(half_t{});
    case DType::bfloat16: return body(bfloat16_t{});
    case DType::float64: return;
  }
}

template <class Pass>
PersistentChoice choose(const Request& request, const Wish& wish, const Limits& limits) {
  Chooser chooser(request, wish, limits);
  with_type(request.dtype, [&](auto type) {
    for_each_launch([&](const PersistentLaunch& launch) {
      with_persistent<Pass, decltype(type)>(request.network.first.cell, launch.tile, [&](auto kernel) {
        chooser.consider<typename decltype(kernel)::Kernel>(launch);
      });
    });
  });
  return chooser.best();
}

}  // namespace

PersistentChoice choose_persistent(const Request& request, const Wish& wish, bool backward,
                                   const Limits& limits) {
  return backward ? choose<BackwardPass>(request, wish, limits) : choose<ForwardPass>(request, wish, limits);
}

}  // namespace fastrnn::cuda
