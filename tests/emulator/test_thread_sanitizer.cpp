// Built with ThreadSanitizer alone.  Does it tell kernels whose barriers are right from those that lack one,
// in shared and in global memory?
#include <vector>

#include "check.h"
#include "emulator/launch_emulated.h"
#include "emulator/thread_sanitizer.h"

using namespace fastrnn;
using namespace fastrnn::cuda;
using emulated::Policy;
using emulated::Schedule;
using emulated::ScheduleScope;

namespace {

bool expected = false;  // not to be printed, nor to fail the run
int reports = 0;

}  // namespace

// ThreadSanitizer, a shared library, asks these.
#define FRNN_VISIBLE __attribute__((visibility("default")))
extern "C" FRNN_VISIBLE const char* __tsan_default_options() {
  return "suppress_equal_stacks=0:suppress_equal_addresses=0";
}
namespace __tsan {
class ReportDesc;
FRNN_VISIBLE FRNN_UNWATCHED bool OnReport(const ReportDesc*, bool suppressed) {
  ++reports;
  return suppressed || expected;
}
}  // namespace __tsan

namespace {

enum class Bug { none, missing_barrier, missing_second_barrier };

// Passes numbers on to the next thread, several times, in shared or in global memory.
template <bool global, Bug bug>
struct Exchange {
  static constexpr const char* kName = "exchange";
  static constexpr int kThreads = 64;
  struct Params {
    int* numbers;  // [blocks, threads]
    int* out;      // [blocks, threads]
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto shared = x.view(layout.take<int>(kThreads));
    const int first = x.block() * kThreads, next = (x.thread() + 1) % kThreads;
    int number = x.thread();
    for (int round = 0; round < 3; ++round) {
      if (global) {
        p.numbers[first + x.thread()] = number;
      } else {
        shared.store(x.thread(), number);
      }
      if (bug != Bug::missing_barrier) x.sync();
      number = global ? p.numbers[first + next] : shared.load(next);
      if (bug != Bug::missing_second_barrier) x.sync();
    }
    p.out[first + x.thread()] = number;
  }
};

// Thread 0 of each CTA hands a number to the others by way of an mbarrier, which it makes wait for the CTA
// before, too.
template <bool bug>
struct Handover {
  static constexpr const char* kName = "handover";
  static constexpr int kThreads = 32;
  using Params = Exchange<false, Bug::none>::Params;
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto tokens = x.view(layout.take<int>(4)), number = x.view(layout.take<int>(1));
    const auto full = x.view(layout.take<MBarrier>(1));
    const int next = (x.cluster_rank() + 1) % x.cluster_size();
    if (x.thread() == 0) {
      x.mbarrier_init(full, 1);
      x.fence_mbarrier_init();
      number.store(0, 0);
    }
    x.cluster_arrive();
    x.cluster_wait();
    if (x.thread() == 0) {
      number.store(0, x.block());
      x.mbarrier_arrive_expect_tx(full, 4);
      x.st_async(x.map_rank(tokens, next), 1, x.map_rank(full, next));
    }
    if (!bug) x.mbarrier_wait_parity(full, 0);
    p.out[x.block() * kThreads + x.thread()] = number.load(0);
    if (bug) x.mbarrier_wait_parity(full, 0);
    x.cluster_arrive();
    x.cluster_wait();
  }
};

const std::vector<Schedule> schedules = {
    {Policy::in_order, 0, false}, {Policy::reverse, 0, false}, {Policy::random, 1, false}};

template <class Kernel>
int reports_of(const Grid& grid) {
  std::vector<int> numbers(128), out(128);
  reports = 0;
  launch<Kernel>(Stream{}, grid, {numbers.data(), out.data()});
  return reports;
}

template <class Right, class... Wrong>
void check_pair(const Grid& grid) {
  for (const Schedule& schedule : schedules) {
    const ScheduleScope scope(schedule);
    expected = false;
    CHECK(reports_of<Right>(grid) == 0);
    expected = true;
    for (const int found : {reports_of<Wrong>(grid)...}) CHECK(found > 0);
  }
  expected = false;
}

}  // namespace

TEST(thread_sanitizer_sees_shared_memory) {
  // In the schedules in which nothing unwritten is read, which the emulator would report first.
  check_pair<Exchange<false, Bug::none>, Exchange<false, Bug::missing_second_barrier>>({2, 256});
}

TEST(thread_sanitizer_sees_global_memory) {
  check_pair<Exchange<true, Bug::none>, Exchange<true, Bug::missing_barrier>,
             Exchange<true, Bug::missing_second_barrier>>({2, 256});
}

TEST(thread_sanitizer_sees_clusters) { check_pair<Handover<false>, Handover<true>>({2, 48, 2}); }
