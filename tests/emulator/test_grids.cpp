// CTAs of a grid that wait for each other by flags in global memory: every step each adds up what all have
// published in the step before, and publishes its own.
#include <vector>

#include "check.h"
#include "emulator/launch_emulated.h"

using namespace fastrnn;
using namespace fastrnn::cuda;
using emulated::all_schedules;
using emulated::KernelError;
using emulated::Schedule;
using emulated::ScheduleScope;

namespace {

enum class Bug {
  none,
  publishes_too_early,  // before the other threads of the CTA have stored
  does_not_wait,
  waits_for_too_many,
};

template <Bug bug>
struct GridSum {
  static constexpr const char* kName = "grid_sum";
  static constexpr int kThreads = 64;
  struct Params {
    int* values;           // [T+1, blocks, threads]; the first step is given
    std::uint32_t* flags;  // [T+1], 0
    int steps;
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const int row = x.blocks() * kThreads;
    for (int t = 0; t < p.steps; ++t) {
      if (x.thread() == 0 && t > 0 && bug != Bug::does_not_wait) {
        x.wait_acquire(p.flags + t,
                       static_cast<std::uint32_t>(x.blocks() + (bug == Bug::waits_for_too_many ? 1 : 0)));
      }
      x.sync();
      int sum = x.block();
      for (int b = 0; b < x.blocks(); ++b)
        sum += x.load_coherent(p.values + t * row + b * kThreads + x.thread());
      x.store_coherent(p.values + (t + 1) * row + x.block() * kThreads + x.thread(), sum);
      if (bug != Bug::publishes_too_early) x.sync();
      if (x.thread() == 0) x.add_release(p.flags + t + 1, 1);
    }
  }
};

template <Bug bug>
std::vector<int> run(int blocks, int steps, bool cooperative = true) {
  const int row = blocks * 64;
  std::vector<int> values(static_cast<std::size_t>((steps + 1) * row), -1);
  for (int i = 0; i < row; ++i) values[static_cast<std::size_t>(i)] = i % 7;
  std::vector<std::uint32_t> flags(static_cast<std::size_t>(steps + 1));
  launch<GridSum<bug>>(Stream{}, {blocks, 0, 1, cooperative}, {values.data(), flags.data(), steps});
  return values;
}

}  // namespace

TEST(grid_publishes_in_every_schedule) {
  const int blocks = 3, steps = 4, row = blocks * 64;
  std::vector<int> right;
  for (int i = 0; i < row; ++i) right.push_back(i % 7);
  for (int t = 0; t < steps; ++t) {
    for (int i = 0; i < row; ++i) {
      int sum = i / 64;
      for (int b = 0; b < blocks; ++b) sum += right[static_cast<std::size_t>(t * row + b * 64 + i % 64)];
      right.push_back(sum);
    }
  }
  for (const Schedule& schedule : all_schedules(10)) {
    const ScheduleScope scope(schedule);
    CHECK(run<Bug::none>(blocks, steps) == right);
  }
}

TEST(finds_a_flag_that_orders_nothing) {
  for (const Schedule& schedule : all_schedules(10)) {
    const ScheduleScope scope(schedule);
    CHECK_THROWS(run<Bug::publishes_too_early>(3, 4), KernelError, "race: thread");
    CHECK_THROWS(run<Bug::does_not_wait>(3, 4), KernelError, "race: thread");
  }
}

TEST(finds_ctas_that_wait_for_one_that_is_not_there) {
  for (const Schedule& schedule : all_schedules(3)) {
    const ScheduleScope scope(schedule);
    CHECK_THROWS(run<Bug::waits_for_too_many>(3, 4), KernelError, "wait_acquire");
    CHECK_THROWS(run<Bug::none>(3, 4, false), KernelError, "deadlock: every thread");
  }
}

// Without the search for races, what is not published in time is not seen.
TEST(unpublished_stores_are_seen_late) {
  bool late = false;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const ScheduleScope scope({emulated::Policy::random, seed, false});
    late |= run<Bug::does_not_wait>(3, 4) != run<Bug::none>(3, 4);
  }
  CHECK(late);
}
