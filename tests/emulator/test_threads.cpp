// Threads, CTAs and warps: do they run as a GPU's would, in every schedule?
#include <numeric>
#include <vector>

#include "check.h"
#include "emulator/launch_emulated.h"

using namespace fastrnn;
using namespace fastrnn::cuda;
using emulated::all_schedules;
using emulated::Schedule;
using emulated::ScheduleScope;

namespace {

// No calls but for who and where.
struct Identify {
  static constexpr const char* kName = "identify";
  static constexpr int kThreads = 64;
  struct Params {
    int* out;  // [blocks, threads, 4]
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    int* out = p.out + (x.block() * kThreads + x.thread()) * 4;
    out[0] = x.warp();
    out[1] = x.lane();
    out[2] = x.blocks();
    out[3] = x.thread();
  }
};

// Sum of a CTA's numbers by halving, in shared memory.
struct BlockSum {
  static constexpr const char* kName = "block_sum";
  static constexpr int kThreads = 128;
  struct Params {
    const float* in;  // [blocks, threads]
    float* out;       // [blocks]
  };
  static FRNN_HOST_DEVICE SharedLayout layout(Slot<float>& sums) {
    SharedLayout all;
    sums = all.take<float>(kThreads);
    return all;
  }
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    Slot<float> slot;
    layout(slot);
    const auto sums = x.view(slot);
    const int i = x.thread();
    sums.store(i, p.in[x.block() * kThreads + i]);
    x.sync();
    for (int n = kThreads / 2; n > 0; n /= 2) {
      if (i < n) sums.store(i, sums.load(i) + sums.load(i + n));
      x.sync();
    }
    if (i == 0) p.out[x.block()] = sums.load(0);
  }
};

struct Shuffles {
  static constexpr const char* kName = "shuffles";
  static constexpr int kThreads = 64;
  struct Params {
    double* out;  // [threads, 5]
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    double* out = p.out + x.thread() * 5;
    const double mine = x.thread() * 1.5;
    out[0] = x.shuffle(mine, 7);
    out[1] = x.shuffle_xor(mine, 16);
    out[2] = static_cast<double>(x.shuffle_down(static_cast<float>(mine), 5));
    out[3] = x.ballot(x.lane() % 3 == 0);
    float sum = static_cast<float>(mine);
    for (int mask = 16; mask > 0; mask /= 2) sum += x.shuffle_xor(sum, mask);
    out[4] = static_cast<double>(sum);
  }
};

// Two pairs of warps, each with a barrier of its own that the other never meets.
struct NamedBarriers {
  static constexpr const char* kName = "named_barriers";
  static constexpr int kThreads = 128;
  struct Params {
    int* out;  // [threads]
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto values = x.view(layout.take<int>(kThreads));
    const int pair = x.warp() / 2;
    for (int step = 0; step <= 2 * pair; ++step) {
      values.store(x.thread(), x.thread() + step);
      x.sync(1 + pair, 64);
      p.out[x.thread()] = values.load(x.thread() ^ 63);
      x.sync(1 + pair, 64);
    }
  }
};

}  // namespace

TEST(every_thread_knows_who_it_is) {
  for (const Schedule& schedule : all_schedules(2)) {
    const ScheduleScope scope(schedule);
    std::vector<int> out(3 * 64 * 4, -1);
    launch<Identify>(Stream{}, {3}, {out.data()});
    for (int i = 0; i < 3 * 64; ++i) {
      const int* got = out.data() + i * 4;
      CHECK(got[0] == i % 64 / 32 && got[1] == i % 32 && got[2] == 3 && got[3] == i % 64);
    }
  }
  launch<Identify>(Stream{}, {0}, {nullptr});
}

TEST(threads_meet_in_sync) {
  std::vector<float> in(5 * 128);
  std::iota(in.begin(), in.end(), 1.0f);
  Slot<float> slot;
  const int bytes = BlockSum::layout(slot).bytes();
  for (const Schedule& schedule : all_schedules(10)) {
    const ScheduleScope scope(schedule);
    std::vector<float> out(5);
    launch<BlockSum>(Stream{}, {5, bytes}, {in.data(), out.data()});
    for (int b = 0; b < 5; ++b) {
      CHECK(out[static_cast<std::size_t>(b)] == static_cast<float>(128 * 128 * b + 128 * 129 / 2));
    }
  }
}

TEST(lanes_exchange_values) {
  for (const Schedule& schedule : all_schedules(5)) {
    const ScheduleScope scope(schedule);
    std::vector<double> out(64 * 5);
    launch<Shuffles>(Stream{}, {1}, {out.data()});
    for (int i = 0; i < 64; ++i) {
      const double* got = out.data() + i * 5;
      const int first = i / 32 * 32;
      CHECK(got[0] == 1.5 * (first + 7));
      CHECK(got[1] == 1.5 * (i ^ 16));
      CHECK(got[2] == 1.5 * (i % 32 + 5 < 32 ? i + 5 : i));
      CHECK(got[3] == 0x49249249u);
      CHECK(got[4] == 1.5 * (32 * first + 31 * 16));
    }
  }
}

TEST(warps_meet_in_named_barriers) {
  for (const Schedule& schedule : all_schedules(5)) {
    const ScheduleScope scope(schedule);
    std::vector<int> out(128);
    launch<NamedBarriers>(Stream{}, {1, 512}, {out.data()});
    for (int i = 0; i < 128; ++i) CHECK(out[static_cast<std::size_t>(i)] == (i ^ 63) + 2 * (i / 64));
  }
}

TEST(what_a_device_refuses_is_refused) {
  CHECK_THROWS(launch<Identify>(Stream{}, {1, 1 << 20}, {nullptr}), Error, "bytes of shared memory");
  CHECK_THROWS(launch<Identify>(Stream{}, {3, 0, 2}, {nullptr}), Error, "clusters of 2");
  CHECK_THROWS(launch<Identify>(Stream{}, {133, 0, 1, true}, {nullptr}), Error, "133 blocks at once");
  CHECK_THROWS(launch<Identify>(Stream{}, {32, 0, 32}, {nullptr}), Error, "clusters of 32");
  const Limits before = current_limits();
  Limits limits = before;
  limits.clusters[3] = 0;  // one with too few neighbours of one multiprocessor for 16
  emulated::set_limits(limits);
  CHECK_THROWS(launch<Identify>(Stream{}, {16, 0, 16}, {nullptr}), Error, "no clusters of 16");
  limits.cluster = 1;  // compute capability 8
  emulated::set_limits(limits);
  CHECK_THROWS(launch<Identify>(Stream{}, {2, 0, 2}, {nullptr}), Error, "clusters of 2");
  emulated::set_limits(before);
}
