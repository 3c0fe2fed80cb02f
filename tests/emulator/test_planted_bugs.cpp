// Does the emulator find what it is there to find?  Each kernel comes in a correct form, which must pass in
// every schedule, and with a bug, which must be reported in every schedule, by its name.
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

constexpr int kSeeds = 10;

struct Output {
  int* out;  // [threads]
};

// Launches both forms in every schedule; out[i] of the correct one is expected(i).
template <template <bool> class Kernel, class F>
void check_bug(const Grid& grid, const char* diagnosis, F expected) {
  std::vector<int> right(Kernel<false>::kThreads);
  for (std::size_t i = 0; i < right.size(); ++i) right[i] = expected(static_cast<int>(i));
  for (const Schedule& schedule : all_schedules(kSeeds)) {
    const ScheduleScope scope(schedule);
    std::vector<int> out(right.size(), -1);
    launch<Kernel<false>>(Stream{}, grid, {out.data()});
    CHECK(out == right);
    CHECK_THROWS(launch<Kernel<true>>(Stream{}, grid, {out.data()}), KernelError, diagnosis);
  }
}

// Passes numbers on to the next thread, twice.
template <bool bug>
struct MissingBarrier {
  static constexpr const char* kName = "missing_barrier";
  static constexpr int kThreads = 64;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto numbers = x.view(layout.take<int>(kThreads));
    int number = x.thread();
    for (int round = 0; round < 2; ++round) {
      numbers.store(x.thread(), number);
      x.sync();
      number = numbers.load((x.thread() + 1) % kThreads);
      if (!bug) x.sync();
    }
    p.out[x.thread()] = number;
  }
};

// The same within a warp.
template <bool bug>
struct MissingWarpBarrier {
  static constexpr const char* kName = "missing_warp_barrier";
  static constexpr int kThreads = 32;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto numbers = x.view(layout.take<int>(kThreads));
    numbers.store(x.lane(), 0);
    if (bug) {
      x.ballot(true);  // lanes meet, but memory is not ordered
    } else {
      x.sync_warp();
    }
    numbers.store((x.lane() + 1) % kThreads, x.lane());
    x.sync_warp();
    p.out[x.thread()] = numbers.load(x.lane());
  }
};

template <bool bug>
struct DivergentCollective {
  static constexpr const char* kName = "divergent_collective";
  static constexpr int kThreads = 32;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    int number = x.lane();
    if (bug && x.lane() >= 16) {
      number = x.shuffle_xor(number, 1);
    } else {
      number = x.shuffle_xor(number, 1);
    }
    p.out[x.thread()] = number;
  }
};

template <bool bug>
struct EarlyExit {
  static constexpr const char* kName = "early_exit";
  static constexpr int kThreads = 64;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const bool outside = x.thread() >= 50;
    if (bug && outside) return;
    x.sync();
    p.out[x.thread()] = outside ? 0 : 1;
  }
};

template <bool bug>
struct OutOfBounds {
  static constexpr const char* kName = "out_of_bounds";
  static constexpr int kThreads = 32;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto numbers = x.view(layout.take<int>(kThreads + (bug ? 0 : 1)));
    numbers.store(x.lane(), x.lane());
    if (!bug && x.lane() == 0) numbers.store(kThreads, kThreads);
    x.sync();
    p.out[x.thread()] = numbers.load(x.lane() + 1);
  }
};

template <bool bug>
struct NothingWritten {
  static constexpr const char* kName = "nothing_written";
  static constexpr int kThreads = 32;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto numbers = x.view(layout.take<int>(kThreads));
    if (!bug || x.lane() != 20) numbers.store(x.lane(), x.lane());
    x.sync();
    p.out[x.thread()] = numbers.load(x.lane() ^ 1);
  }
};

// A view that the launch did not ask for.
template <bool bug>
struct TooLittleShared {
  static constexpr const char* kName = "too_little_shared";
  static constexpr int kThreads = 32;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto numbers = x.view(layout.take<int>(kThreads + (bug ? 1 : 0)));
    numbers.store(x.lane(), 1);
    p.out[x.thread()] = numbers.load(x.lane());
  }
};

template <bool bug>
struct Deadlock {
  static constexpr const char* kName = "deadlock";
  static constexpr int kThreads = 64;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    if (x.warp() == 0) x.sync(1, 64);
    if (x.warp() == 1) x.sync(bug ? 2 : 1, 64);
    p.out[x.thread()] = 1;
  }
};

// cp.async is not done when it is issued, and others need a barrier as well.
template <bool bug>
struct CopyNotWaitedFor {
  static constexpr const char* kName = "copy_not_waited_for";
  static constexpr int kThreads = 32;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto tiles = x.view(layout.take<int>(2 * 4 * kThreads));
    const auto mine = tiles.from(4 * x.lane());
    x.cp_async_16(mine, p.out + 4 * x.lane(), 8);
    x.cp_async_commit();
    x.cp_async_16(mine.from(4 * kThreads), p.out + 4 * x.lane());
    x.cp_async_commit();
    x.cp_async_wait(bug ? 2 : 1);
    x.sync();
    const int next = 4 * ((x.lane() + 1) % kThreads);
    const int sum = tiles.load(next) + tiles.load(next + 1) + tiles.load(next + 2) + tiles.load(next + 3);
    x.cp_async_wait(0);
    p.out[x.thread()] = sum;
  }
};

}  // namespace

TEST(finds_a_missing_barrier) {
  check_bug<MissingBarrier>({1, 256}, "race: thread", [](int i) { return (i + 2) % 64; });
  check_bug<MissingWarpBarrier>({1, 128}, "race: thread", [](int i) { return (i + 31) % 32; });
}

TEST(finds_a_divergent_collective) {
  check_bug<DivergentCollective>({1, 0}, "divergent collective: thread", [](int i) { return i ^ 1; });
}

TEST(finds_an_early_exit) {
  check_bug<EarlyExit>({1, 0}, "early exit: thread", [](int i) { return i < 50; });
}

TEST(finds_an_access_out_of_bounds) {
  check_bug<OutOfBounds>({1, 144}, "asks in load at", [](int i) { return i + 1; });
  check_bug<TooLittleShared>({1, 128}, "out of bounds: view at", [](int) { return 1; });
}

TEST(finds_a_read_of_what_nothing_has_written) {
  check_bug<NothingWritten>({1, 128}, "what nothing has written", [](int i) { return i ^ 1; });
}

TEST(finds_a_deadlock) {
  check_bug<Deadlock>({1, 0},
                      "deadlock: every thread that has not returned waits\n  CTA 0, threads 0-31: sync at",
                      [](int) { return 1; });
}

TEST(finds_a_copy_that_was_not_waited_for) {
  std::vector<int> in(128);
  for (const Schedule& schedule : all_schedules(kSeeds)) {
    const ScheduleScope scope(schedule);
    for (int i = 0; i < 128; ++i) in[static_cast<std::size_t>(i)] = i;
    launch<CopyNotWaitedFor<false>>(Stream{}, {1, 1024}, {in.data()});
    for (int i = 0; i < 32; ++i) CHECK(in[static_cast<std::size_t>(i)] == 8 * ((i + 1) % 32) + 1);
    CHECK_THROWS(launch<CopyNotWaitedFor<true>>(Stream{}, {1, 1024}, {in.data()}), KernelError,
                 "a copy still under way stores");
  }
}
