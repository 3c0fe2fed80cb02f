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

// A named barrier that half of a warp meets elsewhere.
template <bool bug>
struct LanesApart {
  static constexpr const char* kName = "lanes_apart";
  static constexpr int kThreads = 64;
  using Params = Output;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    if (x.warp() == 0 || (bug && x.lane() < 16)) {
      x.sync(1, 64);
    } else {
      x.sync(1, 64);
    }
    p.out[x.thread()] = 1;
  }
};

// Operands that the device reads otherwise, or takes for an error.
enum class Operand { shuffle, shuffle_xor, shuffle_down, copy, copy_source, pending, coherent };

template <Operand operand>
struct WrongOperand {
  static constexpr const char* kName = "wrong_operand";
  static constexpr int kThreads = 32;
  struct Params {
    const int* in;  // 16-byte aligned
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto tile = x.view(layout.take<int>(4));
    if (operand == Operand::shuffle) x.shuffle(1, 32);
    if (operand == Operand::shuffle_xor) x.shuffle_xor(1, -1);
    if (operand == Operand::shuffle_down) x.shuffle_down(1, 33);
    if (operand == Operand::copy) x.cp_async_16(tile, p.in, 20);
    if (operand == Operand::copy_source) x.cp_async_4(tile, after(p.in, 2));
    if (operand == Operand::pending) x.cp_async_wait(8);
    if (operand == Operand::coherent) {
      x.load_coherent(reinterpret_cast<const Pack<int, 2>*>(after(p.in, 4)));
    }
  }
  static const int* after(const int* p, std::ptrdiff_t bytes) {
    return reinterpret_cast<const int*>(reinterpret_cast<const char*>(p) + bytes);
  }
};

template <Operand operand>
void check_operand(const char* diagnosis) {
  alignas(16) const int in[8] = {};
  CHECK_THROWS(launch<WrongOperand<operand>>(Stream{}, {1, 16}, {in}), KernelError, diagnosis);
}

}  // namespace

TEST(finds_a_missing_barrier) {
  check_bug<MissingBarrier>({1, 256}, "race: thread", [](int i) { return (i + 2) % 64; });
  check_bug<MissingWarpBarrier>({1, 128}, "race: thread", [](int i) { return (i + 31) % 32; });
}

TEST(finds_a_divergent_collective) {
  check_bug<DivergentCollective>({1, 0}, "divergent collective: thread", [](int i) { return i ^ 1; });
  check_bug<LanesApart>({1, 0}, "divergent collective: thread", [](int) { return 1; });
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

TEST(finds_a_wrong_operand) {
  check_operand<Operand::shuffle>("shuffle at");
  check_operand<Operand::shuffle_xor>("is given -1; expected 0 to 31");
  check_operand<Operand::shuffle_down>("is given 33; expected 0 to 31");
  check_operand<Operand::copy>("is given 20; expected 0 to 16");
  check_operand<Operand::copy_source>("misaligned: cp_async_4's source at");
  check_operand<Operand::pending>("is given 8; expected 0 to 7");
  check_operand<Operand::coherent>("misaligned: load_coherent at");
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
