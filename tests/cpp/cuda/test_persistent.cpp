// Sequences in persistent kernels against the CPU back end in double, in one CTA and in clusters, by every
// cell, element type and tile; in all schedules, with messages that arrive late.
#include <vector>

#include "check.h"
#include "cuda/plan.h"
#include "emulator/schedule.h"
#include "stack_case.h"

using namespace fastrnn;
using cuda::Strategy;
using cuda::TileKind;

namespace {

constexpr TileKind kTiles[] = {TileKind::narrow, TileKind::wide, TileKind::low};

Network network(Cell cell, Index hidden) {
  Network n;
  n.first.cell = cell;
  n.first.input = 3;
  n.first.hidden = hidden;
  return n;
}

// The case in groups of so many CTAs, if that is what the plan makes of it.
template <class T>
Case persistent(Case c, int ranks, int columns, TileKind tile) {
  c.wish.strategy = ranks == 1 ? Strategy::cta : Strategy::cluster;
  c.wish.ranks = ranks;
  c.wish.columns = columns;
  c.wish.tile = tile;
  if (std::is_same_v<T, float>) c.products = cuda::Products::bf16x3;
  cuda::Request request;
  request.network = c.network;
  request.steps = c.steps;
  request.batch = c.batch;
  request.dtype = dtype_of<T>;
  request.products = c.products;
  request.wish = c.wish;
  const cuda::Plan plan = cuda::make_plan(request, cuda::current_limits());
  CHECK(plan.strategy == c.wish.strategy);
  CHECK(plan.persistence.ranks == ranks && plan.persistence.columns == columns);
  CHECK(plan.persistence.tile == tile);
  return c;
}

template <class T>
void check(const Case& c, int ranks, int columns, TileKind tile) {
  compare<T>(persistent<T>(c, ranks, columns, tile));
}

// The same in every element type.
void check_all(const Case& c, int ranks, int columns, TileKind tile) {
  check<float>(c, ranks, columns, tile);
  check<half_t>(c, ranks, columns, tile);
  check<bfloat16_t>(c, ranks, columns, tile);
}

}  // namespace

TEST(persistent_in_one_cta_or_several) {
  for (const Cell cell : {Cell::lstm, Cell::gru, Cell::rnn}) {
    for (const int ranks : {1, 2, 4}) {
      check_all({network(cell, 33), 3, 5}, ranks, 8, TileKind::narrow);
    }
  }
}
