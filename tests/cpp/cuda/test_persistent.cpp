// Sequences in persistent kernels against the CPU back end in double, in one CTA and in clusters, by every
// cell, element type and tile; in all schedules, with messages that arrive late.
#include <vector>

#include "check.h"
#include "cuda/plan.h"
#include "emulator/schedule.h"
#include "stack_case.h"

using namespace fastrnn;
using cuda::PersistentLaunch;
using cuda::TileKind;
using cuda::emulated::all_schedules;
using cuda::emulated::Schedule;
using cuda::emulated::ScheduleScope;

namespace {

constexpr Cell kCells[] = {Cell::lstm, Cell::gru, Cell::rnn};

Network network(Cell cell, Index hidden) {
  Network n;
  n.first.cell = cell;
  n.first.input = 3;
  n.first.hidden = hidden;
  return n;
}

// Rows of all lengths, from 0 to T; resets at the first step, at the last, twice in a row and in padding.
Case of_all_lengths(const Network& n, Index steps, Index batch) {
  Case c{n, steps, batch};
  c.reset.resize(static_cast<std::size_t>(steps * batch));
  for (Index b = 0; b < batch; ++b) {
    c.lengths.push_back(b == 0 ? steps : (b * 5 + 2) % (steps + 1));
    for (const Index t : {b % steps, (b + 1) % steps, steps - 1 - b / 2 % steps}) {
      if (b % 4 != 3) c.reset[static_cast<std::size_t>(t * batch + b)] = 1;
    }
  }
  return c;
}

// The case in such a launch, if that is what the plan makes of it.
template <class T>
Case launched(Case c, const PersistentLaunch& launch) {
  c.wish = cuda::Wish::for_launch(launch);
  if (std::is_same_v<T, float>) c.products = cuda::Products::bf16x3;
  cuda::Request request;
  request.network = c.network;
  request.steps = c.steps;
  request.batch = c.batch;
  request.dtype = dtype_of<T>;
  request.products = c.products;
  request.wish = request.backward_wish = c.wish;
  request.training = true;
  const cuda::Plan plan = cuda::make_plan(request, cuda::current_limits());
  for (const cuda::PassPlan& pass : {plan.forward, plan.backward}) {
    CHECK(pass.strategy == launch.strategy() && pass.launch == launch);
  }
  return c;
}

template <class T>
void compare_launched(const Case& c, const PersistentLaunch& launch) {
  compare<T>(launched<T>(c, launch));
}
void compare_all_types(const Case& c, const PersistentLaunch& launch) {
  compare_launched<float>(c, launch);
  compare_launched<half_t>(c, launch);
  compare_launched<bfloat16_t>(c, launch);
}

const PersistentLaunch kLaunches[] = {{1, 8, TileKind::narrow}, {2, 8, TileKind::narrow},
                                      {4, 16, TileKind::wide},  {1, 32, TileKind::wide},
                                      {2, 16, TileKind::low},   {4, 8, TileKind::tall}};

}  // namespace

TEST(persistent_batches_around_a_group) {
  for (const Cell cell : kCells) {
    for (const Index batch : {1, 7, 8, 9, 17}) {
      compare_launched<bfloat16_t>({network(cell, 17), 2, batch}, {2, 8, TileKind::narrow});
      compare_launched<half_t>({network(cell, 16), 2, batch}, {1, 16, TileKind::wide});
    }
  }
}

TEST(persistent_of_few_and_many_steps) {
  for (const Cell cell : kCells) {
    for (const Index steps : {1, 2, 3, 6}) {  // 6: every barrier has had a phase of either parity
      for (const PersistentLaunch& launch : {kLaunches[0], kLaunches[1], kLaunches[5]}) {
        compare_launched<half_t>({network(cell, 40), steps, 3}, launch);
        Case c{network(cell, 15), steps, 9};
        c.states = false;
        compare_launched<float>(c, launch);
      }
    }
  }
}

TEST(persistent_in_every_launch) {
  for (const Cell cell : kCells) {
    for (const PersistentLaunch& launch : kLaunches) {
      Network n = network(cell, 33);
      n.directions = 2;
      compare_all_types(of_all_lengths(n, 5, 9), launch);
      Case c = of_all_lengths(network(cell, 5), 4, 6);
      c.reset.clear();
      compare_launched<bfloat16_t>(c, launch);
      c = of_all_lengths(network(cell, 5), 4, 6);
      c.lengths.clear();
      compare_launched<half_t>(c, launch);
      c.reset.clear();
      compare_launched<float>(c, launch);
    }
  }
}

// Layers, directions, peepholes, biases, activations, dropout, layouts: all that a persistent kernel takes.
TEST(persistent_options) {
  for (const Network& n : networks()) {
    const LayerShape& s = n.first;
    if (s.projection || s.peephole == Peephole::full || (s.cell == Cell::gru && !s.reset_after)) continue;
    Case c = ragged(n);
    compare_all_types(c, kLaunches[0]);
    c.batch_first = true;
    c.pad = 1;
    compare_launched<bfloat16_t>(c, kLaunches[1]);
    c = ragged(n);
    c.tokens = true;
    compare_launched<half_t>(c, kLaunches[3]);
  }
}

// Weights that do not all fit into registers, in every tile; the depths are odd pieces more than one has.
// Rows of more than 512 units, backward, are what the tall tile is for.
TEST(persistent_with_weights_in_shared_memory) {
  compare_launched<bfloat16_t>({network(Cell::lstm, 150), 2, 3}, {2, 8, TileKind::narrow});
  compare_launched<half_t>({network(Cell::lstm, 150), 2, 17}, {2, 16, TileKind::wide});
  compare_launched<bfloat16_t>({network(Cell::gru, 180), 2, 3}, {2, 16, TileKind::low});
  compare_launched<float>({network(Cell::lstm, 80), 2, 3}, {1, 8, TileKind::narrow});
  compare_launched<float>({network(Cell::gru, 90), 2, 3}, {1, 16, TileKind::low});
  compare_launched<half_t>({network(Cell::rnn, 270), 2, 3}, {1, 8, TileKind::narrow});
  compare_launched<float>({network(Cell::rnn, 130), 2, 9}, {1, 16, TileKind::tall});
  compare_launched<bfloat16_t>({network(Cell::gru, 250), 2, 3}, {8, 8, TileKind::narrow});
  compare_launched<bfloat16_t>({network(Cell::lstm, 250), 2, 3}, {16, 8, TileKind::narrow});
  compare_launched<bfloat16_t>({network(Cell::gru, 520), 2, 2}, {16, 8, TileKind::tall});
}

// A graph that has both passes, replayed on other inputs, does what a call does.
TEST(persistent_in_a_graph) {
  for (const Cell cell : kCells) {
    Network n = network(cell, 34);
    n.directions = 2;
    const Case c = launched<bfloat16_t>(of_all_lengths(n, 3, 5), kLaunches[1]);
    const Inputs captured(c);
    Inputs in = captured;
    for (Values* values : {&in.x, &in.dy}) {
      for (double& value : *values) value = -value / 2;
    }
    const Outputs expected = on_device<bfloat16_t>(c, in), got = on_device<bfloat16_t>(c, captured, &in);
    CHECK(got.y == expected.y && got.y != got.inference_y);
    CHECK(got.h_n == expected.h_n && got.dh0 == expected.dh0 && got.dx == expected.dx);
    if (cell == Cell::lstm) CHECK(got.c_n == expected.c_n && got.dc0 == expected.dc0);
    CHECK(got.gradients == expected.gradients);
  }
}

// No order in which threads run and messages arrive makes a difference, and none is a race.
TEST(persistent_in_every_schedule) {
  for (const Cell cell : kCells) {
    for (const Schedule& schedule : all_schedules(2)) {
      const ScheduleScope scope(schedule);
      const Case c = of_all_lengths(network(cell, 20), 4, 3);
      compare_launched<bfloat16_t>(c, kLaunches[0]);
      compare_launched<bfloat16_t>(c, kLaunches[1]);
      if (schedule.seed == 0) compare_launched<float>(c, kLaunches[5]);
    }
  }
}

// A row is computed from itself alone: among others, and by itself, it has the same bits.
TEST(persistent_rows_do_not_depend_on_each_other) {
  for (const Cell cell : kCells) {
    const Case all = launched<bfloat16_t>({network(cell, 20), 3, 9}, kLaunches[1]);
    const Inputs in(all);
    const Outputs together = on_device<bfloat16_t>(all, in);
    for (Index b = 0; b < all.batch; ++b) {
      Case one = all;
      one.batch = 1;
      Inputs its = in;
      const auto row = [&](const Values& from, Index times, Index width) {
        Values to;
        for (Index t = 0; t < times; ++t) {
          const auto first = from.begin() + (t * all.batch + b) * width;
          to.insert(to.end(), first, first + width);
        }
        return to;
      };
      its.x = row(in.x, 3, 3);
      its.h0 = row(in.h0, 1, 20);
      its.c0 = row(in.c0, 1, 20);
      its.dy = row(in.dy, 3, 20);
      its.dh_n = row(in.dh_n, 1, 20);
      its.dc_n = row(in.dc_n, 1, 20);
      const Outputs alone = on_device<bfloat16_t>(one, its);
      CHECK(alone.y == row(together.y, 3, 20));
      CHECK(alone.h_n == row(together.h_n, 1, 20));
      if (cell == Cell::lstm) CHECK(alone.c_n == row(together.c_n, 1, 20));
    }
  }
}
