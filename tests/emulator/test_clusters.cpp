// A recurrence spread over the CTAs of a cluster, by the protocol of the persistent kernels in small: does it
// hold in every schedule, and is each way to get it wrong found?
//
//   h_{t+1} = f(W h_t)     W [H,H], h [n,H]; rank p owns the units p*U to p*U + U - 1
//
// Every CTA keeps all of h_t in buffer t % 2 of its shared memory, and an mbarrier for each buffer.  At step
// t it
//   1. expects H*n values of h_{t+1} at the other barrier
//   2. waits for h_t: phase (t-1)/2 of the barrier t % 2 (h_0 it has loaded itself)
//   3. multiplies; sync(), after which none of its threads reads h_t any more
//   4. sends its units of h_{t+1} to every CTA, itself included.
// Two buffers are enough: a peer sends h_{t+2} into the buffer of h_t after it has received our part of
// h_{t+1}, which we sent after 3.  The last step neither expects nor sends; the cluster meets before anyone
// leaves.
#include <string>
#include <vector>

#include "check.h"
#include "emulator/diagnoses.h"
#include "emulator/launch_emulated.h"

using namespace fastrnn;
using namespace fastrnn::cuda;
using emulated::all_schedules;
using emulated::KernelError;
using emulated::Policy;
using emulated::Schedule;
using emulated::ScheduleScope;

namespace {

enum class Bug {
  none,
  parity,            // waits for t/2 instead of (t-1)/2
  sends_too_early,   // before the other threads have read h_t
  one_buffer,        // for both of h_t and h_{t+1}
  no_first_meeting,  // of the cluster, after the mbarriers were initialised
  expects_less,
  last_step_sends,  // what nobody waits for
  leaves_early,     // rank 0, without meeting the others
};

constexpr int kUnits = 16, kColumns = 4;  // U, n: one thread each

struct RecurrenceParams {
  const float* w;    // [H,H]
  const float* h_0;  // [n,H]
  float* h;          // [T,n,H], h_1 to h_T
  int steps;
};

// Mixes well, and stays within [-1, 1].
FRNN_HOST_DEVICE float squash(float x) { return x / (1 + (x < 0 ? -x : x)); }

template <Bug bug>
struct Recurrence {
  static constexpr const char* kName = "cluster_recurrence";
  static constexpr int kThreads = kUnits * kColumns;
  using Params = RecurrenceParams;

  struct Layout {
    Slot<float> h[2];
    Slot<MBarrier> full;
    int bytes;
  };
  static FRNN_HOST_DEVICE Layout layout(int hidden) {
    SharedLayout all;
    Layout l;
    for (auto& h : l.h) h = all.take<float>(kColumns * hidden);
    l.full = all.take<MBarrier>(2);
    l.bytes = all.bytes();
    return l;
  }

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    const int ranks = x.cluster_size(), rank = x.cluster_rank(), hidden = ranks * kUnits;
    const int unit = rank * kUnits + x.thread() % kUnits, column = x.thread() / kUnits;
    const Layout l = layout(hidden);
    const auto full = x.view(l.full);
    const auto buffer = [&](int t) { return x.view(l.h[bug == Bug::one_buffer ? 0 : t % 2]); };

    if (x.thread() == 0) {
      x.mbarrier_init(full, 1);
      x.mbarrier_init(full.from(1), 1);
      x.fence_mbarrier_init();
    }
    for (int i = x.thread(); i < kColumns * hidden; i += kThreads) buffer(0).store(i, p.h_0[i]);
    x.sync();
    if (bug != Bug::no_first_meeting) {
      x.cluster_arrive();
      x.cluster_wait();
    }

    for (int t = 0; t < p.steps; ++t) {
      const bool sends = t + 1 < p.steps || bug == Bug::last_step_sends;
      if (x.thread() == 0 && sends) {
        const int bytes = kColumns * hidden * static_cast<int>(sizeof(float));
        x.mbarrier_arrive_expect_tx(full.from((t + 1) % 2), bytes - (bug == Bug::expects_less ? 16 : 0));
      }
      if (t > 0) x.mbarrier_wait_parity(full.from(t % 2), (bug == Bug::parity ? t : t - 1) / 2 % 2);

      float z = 0;
      for (int k = 0; k < hidden; ++k) z += p.w[unit * hidden + k] * buffer(t).load(column * hidden + k);
      if (bug != Bug::sends_too_early) x.sync();

      const float h = squash(z);
      p.h[(t * kColumns + column) * hidden + unit] = h;
      Pack<float, 4> four;  // of neighbouring units, in every fourth lane
      for (int i = 0; i < 4; ++i) four.value[i] = x.shuffle_down(h, i);
      if (sends && x.lane() % 4 == 0) {
        const auto to = buffer(t + 1).from(column * hidden + unit);
        for (int r = 0; r < ranks; ++r) {
          x.st_async(x.map_rank(to, r), four, x.map_rank(full.from((t + 1) % 2), r));
        }
      }
    }
    if (bug == Bug::leaves_early && rank == 0) return;
    if (bug != Bug::last_step_sends) {
      x.cluster_arrive();
      x.cluster_wait();
    }
  }
};

struct Problem {
  int ranks, steps, hidden;
  std::vector<float> w, h_0, expected;

  Problem(int ranks_, int steps_) : ranks(ranks_), steps(steps_), hidden(ranks_ * kUnits) {
    const auto H = static_cast<std::size_t>(hidden), n = static_cast<std::size_t>(kColumns);
    for (std::size_t i = 0; i < H * H; ++i) w.push_back(static_cast<float>(i * 37 % 101) / 50 - 1);
    for (std::size_t i = 0; i < n * H; ++i) h_0.push_back(static_cast<float>(i * 17 % 19) / 19);
    std::vector<float> h = h_0;
    for (int t = 0; t < steps; ++t) {
      std::vector<float> next;
      for (std::size_t c = 0; c < n; ++c) {
        for (std::size_t u = 0; u < H; ++u) {
          float z = 0;
          for (std::size_t k = 0; k < H; ++k) z += w[u * H + k] * h[c * H + k];
          next.push_back(squash(z));
        }
      }
      expected.insert(expected.end(), next.begin(), next.end());
      h = next;
    }
  }

  // Two clusters with the same problem; both results.
  template <Bug bug>
  std::vector<float> run() const {
    std::vector<float> h(expected.size(), -7);
    const Grid grid = {ranks, Recurrence<bug>::layout(hidden).bytes, ranks};
    launch<Recurrence<bug>>(Stream{}, grid, {w.data(), h_0.data(), h.data(), steps});
    return h;
  }
};

template <Bug bug>
void check_bug(const std::vector<std::string>& diagnoses) {
  const Problem problem(2, 6);
  emulated::check_diagnosed(
      10, diagnoses, [&] { CHECK(problem.run<Bug::none>() == problem.expected); },
      [&] { problem.run<bug>(); });
}

enum class RingBug {
  none,
  overwrites,  // what is still being copied
  no_fence,    // between the stores and the copy, which is of another proxy
};

// Passes a row of numbers round the ring of CTAs, in bulk.
template <RingBug bug>
struct BulkRing {
  static constexpr const char* kName = "bulk_ring";
  static constexpr int kThreads = 32;
  struct Params {
    int* out;  // [ranks, threads]
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto mine = x.view(layout.take<int>(kThreads)), received = x.view(layout.take<int>(kThreads));
    const auto full = x.view(layout.take<MBarrier>(1));
    if (x.thread() == 0) {
      x.mbarrier_init(full, 1);
      x.fence_mbarrier_init();
    }
    mine.store(x.thread(), 100 * x.cluster_rank() + x.thread());
    if (bug != RingBug::no_fence) x.fence_proxy_async();
    x.cluster_arrive();
    x.cluster_wait();
    const int next = (x.cluster_rank() + 1) % x.cluster_size();
    if (x.thread() == 0) {
      x.mbarrier_arrive_expect_tx(full, kThreads * 4);
      x.bulk_copy(x.map_rank(received, next), mine, kThreads * 4, x.map_rank(full, next));
    }
    x.sync();
    if (bug == RingBug::overwrites) mine.store(x.thread(), 0);
    x.mbarrier_wait_parity(full, 0);
    p.out[x.cluster_rank() * kThreads + x.thread()] = received.load(x.thread());
    x.cluster_arrive();
    x.cluster_wait();
    if (bug == RingBug::none) mine.store(x.thread(), 0);  // every CTA has received what it was sent
  }
};

enum class BarrierBug {
  none,
  no_fence,         // after the initialisation
  stored_over,      // by an ordinary store
  not_waited_for,   // another arrival, though nobody has waited for the phase before
  overtaken,        // a phase more completes before a thread has seen the one it waits for
  too_many_bytes,   // expected
  too_many_others,  // arrivals, when it is made
  lanes_apart,      // not all lanes of a warp are in cluster_arrive at once
};

// Three phases of an mbarrier that two warps wait for, with a second one to say when.
template <BarrierBug bug>
struct BarrierPhases {
  static constexpr const char* kName = "barrier_phases";
  static constexpr int kThreads = 64;
  struct Params {};
  template <class X>
  static FRNN_DEVICE void run(const Params&, X& x) {
    SharedLayout layout;
    const Slot<MBarrier> slot = layout.take<MBarrier>(2);
    const auto full = x.view(slot), waiting = full.from(1);
    if (x.thread() == 0) {
      x.mbarrier_init(full, bug == BarrierBug::too_many_others ? 1 << 20 : 1);
      x.mbarrier_init(waiting, 1);
      if (bug != BarrierBug::no_fence) x.fence_mbarrier_init();
      if (bug == BarrierBug::stored_over) x.view(Slot<int>{slot.offset, 1}).store(0, 0);
    }
    x.sync();
    if (x.thread() == 32) x.mbarrier_arrive(waiting);
    if (x.thread() == 0) {
      x.mbarrier_wait_parity(waiting, 0);
      x.mbarrier_arrive(full);
      if (bug == BarrierBug::not_waited_for) x.mbarrier_arrive(full);
      x.mbarrier_wait_parity(full, 0);
      if (bug == BarrierBug::overtaken) x.mbarrier_arrive(full);
    }
    if (x.thread() == 32) x.mbarrier_wait_parity(full, 0);
    x.sync();
    if (bug == BarrierBug::too_many_bytes && x.thread() == 0) x.mbarrier_arrive_expect_tx(full, 1 << 20);
    if (x.thread() == 0) x.mbarrier_arrive(full);
    x.mbarrier_wait_parity(full, 1);
    if (bug == BarrierBug::lanes_apart && x.lane() >= 16) {
      x.cluster_arrive();
    } else {
      x.cluster_arrive();
    }
    x.cluster_wait();
  }
};

// What is reported of a bug; the kernel without it runs.
template <BarrierBug bug>
void check_barrier_bug(const char* diagnosis, const std::vector<Schedule>& schedules) {
  for (const Schedule& schedule : schedules) {
    const ScheduleScope scope(schedule);
    launch<BarrierPhases<BarrierBug::none>>(Stream{}, {2, 16, 2}, {});
    CHECK_THROWS(launch<BarrierPhases<bug>>(Stream{}, {2, 16, 2}, {}), KernelError, diagnosis);
  }
}

}  // namespace

TEST(cluster_recurrence_is_right_in_every_schedule) {
  for (const int ranks : {2, 3, 4}) {
    for (const int steps : {1, 2, 5, 8}) {
      const Problem problem(ranks, steps);
      for (const Schedule& schedule : all_schedules(5)) {
        const ScheduleScope scope(schedule);
        CHECK(problem.run<Bug::none>() == problem.expected);
      }
    }
  }
}

TEST(finds_a_wrong_mbarrier_phase) { check_bug<Bug::parity>({"wrong mbarrier phase: thread"}); }

TEST(finds_a_buffer_overwritten_while_read) {
  check_bug<Bug::sends_too_early>({"race: thread"});
  check_bug<Bug::one_buffer>({"race: thread"});
}

TEST(finds_a_cluster_that_did_not_meet_first) {
  check_bug<Bug::no_first_meeting>({"has not been initialised", "race: thread"});
}

TEST(finds_a_count_of_bytes_that_is_wrong) {
  check_bug<Bug::expects_less>({"race: thread", "what nothing has written"});
}

TEST(finds_a_cta_that_exits_before_its_peers_are_done) {
  check_bug<Bug::last_step_sends>({"before its peers"});
  check_bug<Bug::leaves_early>({"early exit: thread"});
}

TEST(finds_a_source_of_a_bulk_copy_overwritten) {
  std::vector<int> out(3 * 32), right;
  for (int i = 0; i < 3 * 32; ++i) right.push_back((i / 32 + 2) % 3 * 100 + i % 32);
  for (const Schedule& schedule : all_schedules(10)) {
    const ScheduleScope scope(schedule);
    launch<BulkRing<RingBug::none>>(Stream{}, {3, 272, 3}, {out.data()});
    CHECK(out == right);
    CHECK_THROWS(launch<BulkRing<RingBug::overwrites>>(Stream{}, {3, 272, 3}, {out.data()}), KernelError,
                 "race: thread");
    CHECK_THROWS(launch<BulkRing<RingBug::no_fence>>(Stream{}, {3, 272, 3}, {out.data()}), KernelError,
                 "missing fence_proxy_async: thread");
  }
}

TEST(finds_a_misused_mbarrier) {
  const std::vector<Schedule> all = all_schedules(5);
  check_barrier_bug<BarrierBug::no_fence>("missing fence_mbarrier_init: thread 32", all);
  check_barrier_bug<BarrierBug::stored_over>("what is part of an mbarrier", all);
  check_barrier_bug<BarrierBug::too_many_bytes>("too many bytes: thread 0", all);
  check_barrier_bug<BarrierBug::too_many_others>("for 1048576 arrivals", all);
  check_barrier_bug<BarrierBug::lanes_apart>("divergent collective: thread", all);
  // In order, because others may let the other warp wait in time.
  const std::vector<Schedule> in_order(1, Schedule{Policy::in_order, 0, true});
  check_barrier_bug<BarrierBug::not_waited_for>("before anybody has waited for its phase 0", in_order);
  check_barrier_bug<BarrierBug::overtaken>("which meanwhile completed another one", in_order);
}

// Which the device leaves undefined.
TEST(finds_a_st_async_in_a_cluster_of_one) {
  CHECK_THROWS(Problem(1, 2).run<Bug::none>(), KernelError, "in a cluster of one CTA");
}
