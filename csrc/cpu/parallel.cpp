#include "cpu/parallel.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cfenv>
#include <climits>
#include <csignal>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/cpu_limit.h"

namespace fastrnn::cpu {
namespace detail {
namespace {

// Workers must leave signals to the threads of the program, which may be waiting to be interrupted by one.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// The kernel reads the count as a plain word.
static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

}  // namespace

void Event::wake() { syscall(SYS_futex, &count_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }

void Event::sleep(std::uint32_t seen) {
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  // Returns at once when the count is past `seen`, and sometimes for no reason: hence the loop.
  while (count_.load(std::memory_order_seq_cst) == seen) {
    syscall(SYS_futex, &count_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

// A pool is never destroyed, and its threads are detached: they sleep until the process ends, and touch
// nothing that the end of the process destroys.
class Pool {
 public:
  bool try_take() { return !taken_.exchange(true, std::memory_order_acquire); }
  void give_back() { taken_.store(false, std::memory_order_release); }

  // The rest is for the caller that has taken the pool.

  // Starts workers until there are `wanted`, or as many as the system lets us have; returns how many there
  // are.
  int grow(int wanted) {
    while (static_cast<int>(workers_.size()) < wanted) {
      workers_.push_back(std::make_unique<Worker>());
      try {
        const SignalsBlocked blocked;
        std::thread(&Pool::work, this, workers_.back().get(), static_cast<int>(workers_.size())).detach();
      } catch (const std::exception&) {  // no more threads to be had, or no memory for one
        workers_.pop_back();
        break;
      }
    }
    return std::min(wanted, static_cast<int>(workers_.size()));
  }

  void run(Task task, void* fn, int size) {
    task_ = task;
    fn_ = fn;
    std::fegetenv(&environment_);
    running_.store(size - 1, std::memory_order_relaxed);
    for (int i = 0; i < size - 1; ++i) {
      Worker& worker = *workers_[static_cast<std::size_t>(i)];
      if (worker.start.slept_on()) worker.keep_away();
      worker.start.signal();
    }
    run_part(0);
    finished_.wait_past(rounds_++);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  struct Worker {
    Event start;
    std::atomic<pid_t> thread{0};
    cpu_set_t allowed;       // where it may run ...
    bool kept_away = false;  // ... but for the caller's CPU, to begin with

    // The system likes to wake a thread on the CPU of the one that wakes it. There the two would take turns:
    // in every barrier one polls in vain and sleeps, so that neither is ever busy enough to be moved
    // (measured: 40 us a barrier, for calls some milliseconds apart).
    void keep_away() {
      const pid_t id = thread.load(std::memory_order_relaxed);
      const int cpu = sched_getcpu();
      if (id == 0 || cpu < 0 || sched_getaffinity(id, sizeof allowed, &allowed) != 0) return;
      cpu_set_t others = allowed;
      CPU_CLR(static_cast<std::size_t>(cpu), &others);
      kept_away = CPU_COUNT(&others) != 0 && sched_setaffinity(id, sizeof others, &others) == 0;
    }
    void come_back() {
      if (std::exchange(kept_away, false)) sched_setaffinity(0, sizeof allowed, &allowed);
    }
  };

  void work(Worker* worker, int tid) {
    worker->thread.store(static_cast<pid_t>(syscall(SYS_gettid)), std::memory_order_relaxed);
    for (std::uint32_t round = 0;; ++round) {
      worker->start.wait_past(round);
      worker->come_back();
      std::fesetenv(&environment_);
      run_part(tid);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) finished_.signal();
    }
  }

  void run_part(int tid) {
    try {
      task_(fn_, tid);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::atomic<bool> taken_{false};
  std::vector<std::unique_ptr<Worker>> workers_;  // number i has tid i + 1

  // The task of this round: written before the start events, read after them.
  Task task_ = nullptr;
  void* fn_ = nullptr;
  std::fenv_t environment_;

  alignas(cache_line) std::atomic<int> running_{0};  // workers that have not finished this round
  Event finished_;
  std::uint32_t rounds_ = 0;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

namespace {

std::atomic<Pool*> current_pool{nullptr};

// fork() copies the pool but none of its threads, so a child forgets it and makes its own when it needs one.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { current_pool.store(nullptr, std::memory_order_relaxed); });

Pool& pool() {
  Pool* existing = current_pool.load(std::memory_order_acquire);
  if (existing != nullptr) return *existing;
  auto fresh = std::make_unique<Pool>();
  if (current_pool.compare_exchange_strong(existing, fresh.get(), std::memory_order_acq_rel)) {
    return *fresh.release();
  }
  return *existing;  // another thread was first
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> threads{default_threads()};
  return threads;
}

}  // namespace
}  // namespace detail

void set_num_threads(int n) {
  if (n < 1 || n > max_threads) {
    throw std::invalid_argument("n is " + std::to_string(n) + "; expected a number of threads from 1 to " +
                                std::to_string(max_threads));
  }
  detail::thread_setting().store(n, std::memory_order_relaxed);
}

int num_threads() { return detail::thread_setting().load(std::memory_order_relaxed); }

// Delegates, so that the destructor gives the pool back when starting a worker throws.
Team::Team(int wanted) : Team() {
  wanted = std::min(wanted, num_threads());
  if (wanted <= 1) return;
  detail::Pool& pool = detail::pool();
  if (!pool.try_take()) return;
  pool_ = &pool;
  size_ = 1 + pool.grow(wanted - 1);
}

Team::~Team() {
  if (pool_ != nullptr) pool_->give_back();
}

void Team::run_task(detail::Task task, void* fn) {
  if (size_ == 1) {
    task(fn, 0);
  } else {
    pool_->run(task, fn, size_);
  }
}

}  // namespace fastrnn::cpu
