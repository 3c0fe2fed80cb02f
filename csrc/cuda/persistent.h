// Sequences in persistent kernels: which of them can take a call, and how it is divided.
#pragma once

#include <vector>

#include "core/check.h"
#include "cuda/kernels/persistent_backward.h"
#include "cuda/kernels/persistent_forward.h"
#include "cuda/launch.h"
#include "cuda/plan.h"

namespace fastrnn::cuda {

// A kernel's type, as a value.
template <class K>
struct KernelType {
  using Kernel = K;
};

// The kernels of a pass, by cell.
template <template <class, class, class> class Kernel_, class LstmCell, class GruCell, class ElmanCell>
struct Pass {
  template <class Cell, class T, class Tile>
  using Kernel = Kernel_<Cell, T, Tile>;
  using Lstm = LstmCell;
  using Gru = GruCell;
  using Elman = ElmanCell;
};
using ForwardPass = Pass<PersistentForward, PersistentLstm, PersistentGru, PersistentElman>;
using BackwardPass =
    Pass<PersistentBackward, PersistentLstmBackward, PersistentGruBackward, PersistentElmanBackward>;

template <class Pass, class Cell, class T, class Body>
void with_tile(TileKind kind, Body body) {
  switch (kind) {
    case TileKind::narrow:
      return body(KernelType<typename Pass::template Kernel<Cell, T, typename Tiles<T>::Narrow>>{});
    case TileKind::wide:
      return body(KernelType<typename Pass::template Kernel<Cell, T, typename Tiles<T>::Wide>>{});
    case TileKind::low:
      return body(KernelType<typename Pass::template Kernel<Cell, T, typename Tiles<T>::Low>>{});
    case TileKind::tall:
      return body(KernelType<typename Pass::template Kernel<Cell, T, typename Tiles<T>::Tall>>{});
  }
}

// Calls body(KernelType) for the kernel of a pass and cell with that tile.
template <class Pass, class T, class Body>
void with_persistent(Cell cell, TileKind kind, Body body) {
  switch (cell) {
    case Cell::lstm: return with_tile<Pass, typename Pass::Lstm, T>(kind, body);
    case Cell::gru: return with_tile<Pass, typename Pass::Gru, T>(kind, body);
    case Cell::rnn: return with_tile<Pass, typename Pass::Elman, T>(kind, body);
  }
}

// Calls body(launch) for all that are compiled.
template <class Body>
void for_each_launch(Body body) {
  for (const int ranks : {1, 2, 4, 8, 16}) {
    for (const TileKind tile : {TileKind::narrow, TileKind::wide, TileKind::low, TileKind::tall}) {
      for (const int columns : {8, 16, 32, 64}) body(PersistentLaunch{ranks, columns, tile});
    }
  }
}

inline PersistentShape persistent_shape(const Request& request, const PersistentLaunch& launch) {
  PersistentShape s;
  s.hidden = static_cast<int>(request.network.first.hidden);
  s.batch = static_cast<int>(request.batch);
  s.directions = static_cast<int>(request.network.directions);
  s.ranks = launch.ranks;
  s.columns = launch.columns;
  return s;
}

// Starts the kernel of a pass for the directions of a layer, parts that have their steps().
template <class Pass, class T, class Part>
void launch_persistent(Stream stream, const Request& request, const PersistentLaunch& launched,
                       const std::vector<Part>& directions) {
  const LayerShape& layer = request.network.first;
  with_persistent<Pass, T>(layer.cell, launched.tile, [&](auto kernel) {
    using Kernel = typename decltype(kernel)::Kernel;
    typename Kernel::Params params;
    const PersistentShape& s = params.shape = persistent_shape(request, launched);
    params.nonlinearity = layer.nonlinearity;
    for (std::size_t i = 0; i < directions.size(); ++i) params.parts[i] = directions[i].steps();
    FRNN_CHECK(Index{s.groups()} * s.directions * s.ranks < Index{1} << 31,
               "B exceeds what one launch can count");
    Grid grid;
    grid.blocks = s.blocks();
    grid.shared = typename Kernel::Layout(s).shared.bytes();
    grid.cluster = s.ranks;
    launch<Kernel>(stream, grid, params);
  });
}

// Of the launches that the device can run and the wish allows, the fastest by the model; 0 ranks if there is
// none.
struct PersistentChoice {
  PersistentLaunch launch;
  double cycles = 0;  // of one step
};
PersistentChoice choose_persistent(const Request& request, const Wish& wish, bool backward,
                                   const Limits& limits);

}  // namespace fastrnn::cuda
