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
