// Threads: one pool for the process, lent to one caller at a time, and a barrier for the threads of a team.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace fastrnn::cpu {

// More threads than any machine this is meant for has CPUs; catches a mistaken set_num_threads(10**9).
inline constexpr int max_threads = 1024;

// The largest team from now on; starts as default_threads(). std::invalid_argument unless 1 <= n <=
// max_threads.
void set_num_threads(int n);
int num_threads();

namespace detail {

// Two threads that write to the same line slow each other down, so what they write is this far apart.
inline constexpr std::size_t cache_line = 64;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Polls until ready() or until some 10 to 200 us have gone (a pause is 10 to 140 cycles): longer than the
// steps of a sequence differ between threads and than a sleeper takes to be woken, since else one sleep leads
// to the next, each coming back so late that the other has gone to sleep; and short beside the time slice
// that a sleeping thread's CPU is worth. Returns the last ready().
template <class Ready>
bool spin(Ready ready) {
  for (int i = 0; i < 4096; ++i) {
    if (ready()) return true;
    pause();
  }
  return ready();
}

// A count that some threads raise and others wait for: polled for a while, then slept on. A sleeper is not
// charged for the CPU and gets one as soon as it is woken; a thread that polls on, yielding, falls behind
// every other process of a busy machine (measured with two such: a barrier 10 to 25 times slower).
class alignas(cache_line) Event {
 public:
  // What was written before signal() is seen after a count() that has it, and after wait_past().
  std::uint32_t count() const { return count_.load(std::memory_order_acquire); }

  void signal() {
    // In one total order with a sleeper's two steps: either it sees the new count, or it is seen here.
    count_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) != 0) wake();
  }
  // Does a thread sleep on it?
  bool slept_on() const { return sleepers_.load(std::memory_order_relaxed) != 0; }
  void wait_past(std::uint32_t seen) {
    if (!spin([&] { return count_.load(std::memory_order_acquire) != seen; })) sleep(seen);
  }

 private:
  void wake();
  void sleep(std::uint32_t seen);

  std::atomic<std::uint32_t> count_{0};
  std::atomic<int> sleepers_{0};
};

using Task = void (*)(void* fn, int tid);

class Pool;

}  // namespace detail

// The threads for one parallel region. Constructing a team takes the pool for its lifetime; when the pool is
// taken (by another caller, or by the region that this code itself runs in) the team has size 1. The size is
// therefore final before any work is cut up, and may be less than wanted. No thread is started before the
// first team of two. A team is used by the thread that made it, in the process that made it.
class Team {
 public:
  explicit Team(int wanted);  // at most num_threads()
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls fn(tid) once for each tid in 0..size()-1, tid 0 on this thread, and returns when all have returned.
  // The workers take over this thread's floating-point environment (rounding, denormals), so that results do
  // not depend on which thread computed them. An exception is rethrown here once all are done, the first if
  // there are several; a call that throws must not leave others waiting in a barrier.
  template <class F>
  void run(F&& fn) {
    using Fn = std::remove_reference_t<F>;
    const void* erased = &fn;
    run_task([](void* f, int tid) { (*static_cast<Fn*>(f))(tid); }, const_cast<void*>(erased));
  }

 private:
  Team() = default;
  void run_task(detail::Task task, void* fn);

  detail::Pool* pool_ = nullptr;  // held while not null
  int size_ = 1;
};

// Holds n threads until all have arrived; reusable at once. What a thread wrote before wait() is seen by all
// after it.
class SpinBarrier {
 public:
  explicit SpinBarrier(int n) : n_(n), missing_(n) {}
  SpinBarrier(const SpinBarrier&) = delete;
  SpinBarrier& operator=(const SpinBarrier&) = delete;

  void wait() {
    // The round cannot end before this thread has arrived, so this reads the round it takes part in.
    const std::uint32_t round = rounds_.count();
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      missing_.store(n_, std::memory_order_relaxed);
      rounds_.signal();
    } else {
      rounds_.wait_past(round);
    }
  }

 private:
  const int n_;
  alignas(detail::cache_line) std::atomic<int> missing_;
  detail::Event rounds_;
};

}  // namespace fastrnn::cpu
