#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cfenv>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"
#include "threads.h"

using namespace fastrnn::cpu;

namespace {

std::vector<int> calls_per_thread(Team& team) {
  std::vector<int> calls(static_cast<std::size_t>(team.size()), 0);
  team.run([&](int tid) { ++calls[static_cast<std::size_t>(tid)]; });
  return calls;
}

}  // namespace

TEST(team_runs_each_thread_once) {
  const Threads threads(5);
  for (int wanted = 1; wanted <= 5; ++wanted) {
    Team team(wanted);
    CHECK(team.size() == wanted);
    CHECK(calls_per_thread(team) == std::vector<int>(static_cast<std::size_t>(wanted), 1));
    CHECK(calls_per_thread(team) == std::vector<int>(static_cast<std::size_t>(wanted), 1));
  }
}

TEST(team_caller_is_thread_0) {
  const Threads threads(3);
  Team team(3);
  std::array<std::thread::id, 3> ids;
  team.run([&](int tid) { ids[static_cast<std::size_t>(tid)] = std::this_thread::get_id(); });
  CHECK(ids[0] == std::this_thread::get_id());
  CHECK(ids[1] != ids[0] && ids[2] != ids[0] && ids[1] != ids[2]);
}

TEST(team_is_no_larger_than_the_setting) {
  const Threads threads(2);
  CHECK(Team(8).size() == 2);
  CHECK(Team(0).size() == 1);
  CHECK_THROWS(set_num_threads(0), std::invalid_argument, "n is 0; expected");
  CHECK_THROWS(set_num_threads(max_threads + 1), std::invalid_argument, "n is 1025; expected");
  CHECK(num_threads() == 2);
}

TEST(team_within_a_team_has_one_thread) {
  const Threads threads(3);
  Team outer(3);
  outer.run([](int) {
    Team inner(3);
    CHECK(inner.size() == 1);
    int calls = 0;
    inner.run([&](int tid) { calls += 1 + tid; });
    CHECK(calls == 1);
  });
}

TEST(team_beside_a_team_has_one_thread) {
  const Threads threads(2);
  const Team first(2);
  std::thread other([] { CHECK(Team(2).size() == 1); });
  other.join();
  CHECK(first.size() == 2);
}

TEST(team_gives_the_pool_back) {
  const Threads threads(2);
  for (int i = 0; i < 3; ++i) CHECK(Team(2).size() == 2);
}

TEST(team_calls_from_many_threads) {
  const Threads threads(2);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([] {
      for (int i = 0; i < 50; ++i) {
        Team team(2);
        const std::vector<int> calls = calls_per_thread(team);
        CHECK(std::accumulate(calls.begin(), calls.end(), 0) == team.size());
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(team_passes_exceptions_on) {
  const Threads threads(3);
  Team team(3);
  for (int thrower = 0; thrower < 3; ++thrower) {
    CHECK_THROWS(team.run([&](int tid) {
      if (tid == thrower) throw std::runtime_error("from thread " + std::to_string(tid));
    }),
                 std::runtime_error, "from thread " + std::to_string(thrower));
    CHECK(calls_per_thread(team) == std::vector<int>(3, 1));
  }
  CHECK_THROWS(team.run([](int) { throw std::runtime_error("all of them"); }), std::runtime_error,
               "all of them");
  CHECK(calls_per_thread(team) == std::vector<int>(3, 1));
}

TEST(team_works_after_its_threads_have_slept) {
  const Threads threads(3);
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    Team team(3);
    CHECK(calls_per_thread(team) == std::vector<int>(3, 1));
  }
}

TEST(team_threads_that_have_slept_may_run_anywhere) {
  const Threads threads(3);
  cpu_set_t own;
  CHECK(sched_getaffinity(0, sizeof own, &own) == 0);
  Team team(3);
  for (int round = 0; round < 3; ++round) {
    usleep(20000);
    std::array<bool, 3> same{};
    team.run([&](int tid) {
      cpu_set_t allowed;
      const bool known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
      same[static_cast<std::size_t>(tid)] = known && CPU_EQUAL(&allowed, &own);
    });
    CHECK(same[0] && same[1] && same[2]);
  }
}

TEST(team_takes_over_the_floating_point_environment) {
  const Threads threads(2);
  for (const int rounding : {FE_UPWARD, FE_TONEAREST}) {
    std::fesetround(rounding);
    Team team(2);
    team.run([&](int) { CHECK(std::fegetround() == rounding); });
  }
}

#ifndef __SANITIZE_THREAD__  // ThreadSanitizer does not follow threads into a fork
TEST(team_works_after_fork) {
  const Threads threads(3);
  {
    Team team(3);
    CHECK(calls_per_thread(team) == std::vector<int>(3, 1));
  }
  const Team held(3);  // the child inherits a pool that is taken and has no threads
  const pid_t child = fork();
  if (child == 0) {
    Team team(3);
    _exit(calls_per_thread(team) == std::vector<int>(3, 1) ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

TEST(barrier_separates_rounds) {
  // More threads than most test machines have CPUs: the barrier must let go of them.
  constexpr int n = 6;
  constexpr int rounds = 200;
  const Threads threads(n);
  Team team(n);
  SpinBarrier barrier(n);
  std::array<int, n> written{};
  team.run([&](int tid) {
    for (int round = 0; round < rounds; ++round) {
      written[static_cast<std::size_t>(tid)] = round + tid;
      barrier.wait();
      CHECK(std::accumulate(written.begin(), written.end(), 0) == n * round + n * (n - 1) / 2);
      barrier.wait();
    }
  });
}

TEST(barrier_of_one_never_waits) {
  SpinBarrier barrier(1);
  for (int i = 0; i < 3; ++i) barrier.wait();
}
