// Which rows take part in which step, and how work is divided.
#include "check.h"
#include "cpu/schedule.h"

using namespace fastrnn;
using namespace fastrnn::cpu;

TEST(schedule_of_ragged_rows) {
  const Index lengths[] = {2, 0, 5, 2, 3};
  Schedule s;
  s.set(7, 5, lengths);
  CHECK(s.steps() == 5);
  const Index rows[] = {2, 4, 0, 3, 1}, active[] = {4, 4, 2, 1, 1};
  for (Index j = 0; j < 5; ++j) CHECK(s.row(j) == rows[j] && s.length(j) == lengths[rows[j]]);
  for (Index step = 0; step < 5; ++step) CHECK(s.active(step) == active[step]);
  CHECK(s.time(1, 1, false) == 1 && s.time(0, 1, true) == 2 && s.time(2, 1, true) == 0);
}

TEST(schedule_without_lengths_and_without_rows) {
  Schedule s;
  s.set(3, 2, nullptr);
  CHECK(s.steps() == 3 && s.active(0) == 2 && s.active(2) == 2 && s.row(1) == 1);
  s.set(3, 0, nullptr);
  CHECK(s.steps() == 0 && s.batch() == 0);
  const Index none[] = {0, 0};
  s.set(3, 2, none);
  CHECK(s.steps() == 0 && s.length(1) == 0);
}

TEST(shares_cover_everything_once) {
  for (const int threads : {1, 2, 3, 7}) {
    for (const Index total : {Index{0}, Index{1}, Index{5}, Index{64}, Index{65}}) {
      Index next = 0;
      for (int tid = 0; tid < threads; ++tid) {
        const Share share{tid, threads, true, nullptr};
        const Range part = share.slice(total, 4);
        CHECK(part.first == next && part.last >= part.first);
        next = part.last;
      }
      CHECK(next == total);
    }
  }
}

TEST(more_threads_allowed_never_means_fewer_used) {
  for (const Index hidden : {64, 256, 512, 1000}) {
    for (const Index batch : {1, 2, 8, 33, 256}) {
      LayerShape shape;
      shape.input = shape.hidden = hidden;
      int before = 1;
      for (int allowed = 1; allowed <= 64; ++allowed) {
        const Split split = choose_split(shape, 100, batch, 16, 6, allowed);
        CHECK(split.threads >= before && split.threads <= allowed);
        before = split.threads;
      }
    }
  }
}

TEST(layers_go_side_by_side_where_that_keeps_threads_busy) {
  const auto groups = [](Index input, Index hidden, Index layers, Index steps, Index batch, int threads) {
    LayerShape first, above;
    first.hidden = above.input = above.hidden = hidden;
    first.input = input;
    return choose_layer_split(first, above, layers, steps, batch, 16, 6, 4, threads).groups;
  };
  CHECK(groups(64, 64, 2, 100, 1, 2) == 2);
  CHECK(groups(64, 64, 5, 100, 1, 2) == 2);
  CHECK(groups(64, 64, 2, 100, 1, 4) == 2);
  CHECK(groups(64, 64, 1, 100, 1, 2) == 1);
  CHECK(groups(64, 64, 2, 100, 1, 1) == 1);
  CHECK(groups(64, 64, 2, 0, 1, 2) == 1 && groups(64, 64, 2, 100, 0, 2) == 1);
  // One task for each layer: each would wait for the one below.
  for (const Index layers : {2, 4, 8}) CHECK(groups(64, 64, layers, 1, 30, 2) == 1);
  CHECK(groups(128, 128, 2, 4, 1, 2) == 1);
  // The first layer has nine tenths of the work, or, of few inputs or tokens, the second most of it.
  CHECK(groups(1024, 64, 2, 100, 16, 2) == 1);
  CHECK(groups(4, 64, 2, 100, 16, 2) == 1 && groups(0, 64, 2, 100, 16, 2) == 1);
  // Weights that exceed a core's L2.
  CHECK(groups(64, 300, 2, 100, 1, 2) == 1 && groups(4000, 64, 2, 100, 1, 2) == 1);
}
