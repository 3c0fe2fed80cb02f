// The machine that runs a launch: threads as fibers, who waits for what, what is under way between CTAs.
//
// CTAs that may talk to each other (a cluster, or with Grid::cooperative the grid) are on the machine
// together: a unit; units run one after another.  A thread runs until it has to wait; which one is next is
// the schedule's choice. A thread that never waits costs no switch: the fiber that ran it takes the next one.
#pragma once

#include <array>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/context.h"
#include "cuda/launch.h"
#include "emulator/clock.h"
#include "emulator/fiber.h"
#include "emulator/schedule.h"
#include "emulator/shared_memory.h"
#include "emulator/site.h"

namespace fastrnn::cuda::emulated {

class EmulatedContext;
struct Cta;
struct Thread;

using Threads = std::vector<Thread*>;

// Threads that meet.
struct Meeting {
  const char* call = "";
  Site site;
  int expected = 0;
  unsigned generation = 0;  // how often they have met
  Threads here;
  char order[2];  // see thread_sanitizer.h
};

// A warp's meeting, and what its lanes bring along.  Two sets, because a lane may come to the next meeting
// before the others have taken what they came for.
struct Warp {
  using Brought = std::array<std::array<std::uint32_t, 6>, kWarp>;
  Meeting meeting;
  Brought brought[2];
  int finished = 0;
};

// An mbarrier counts arrivals up to this, and bytes from minus this.
inline constexpr int kMBarrierMost = (1 << 20) - 1;

struct MBarrierState {
  int id = 0;  // index in clocks
  int offset = 0;
  Cta* cta = nullptr;
  const Thread* maker = nullptr;
  bool fenced = false;  // by its maker, and thereby for others
  int count = 0;        // arrivals of each phase
  int pending = 0;      // that are missing
  long bytes = 0;       // that are missing; negative if they came before they were expected
  int completed = 0;    // phases
  int noticed = 0;      // those of them that any thread has waited for
  Clock arriving, complete;
  Threads waiting;
  char order[2];
};

// What the CTAs of a cluster share.
struct Cluster {
  std::vector<Cta*> ctas;
  int arrived = 0;  // threads, in this generation
  unsigned generation = 0;
  Clock arriving, complete;
  Threads waiting;
  char order[2];
  const char* call = "cluster_arrive";
  Site site;
};

struct Cta {
  int block = 0;
  int rank = 0;
  Cluster* cluster = nullptr;
  SharedMemory memory;
  Meeting meeting;
  std::map<int, Meeting> named;
  std::vector<Warp> warps;
  std::map<int, MBarrierState> mbarriers;  // by offset
  int finished = 0;                        // threads
  Clock end;                               // what its finished threads know
  // Stores that other CTAs do not see yet: address to bytes.
  struct Store {
    int bytes = 0;
    std::array<unsigned char, 16> data = {};
  };
  std::map<std::uintptr_t, Store> unpublished;

  std::string name() const { return "CTA " + std::to_string(block); }
};

// cp.async of one thread.
struct Copy {
  int group = 0;  // the number of commits before it
  int offset = 0;
  const void* from = nullptr;
  int bytes = 0;  // the rest of `size` are zeros
  int size = 0;
  Site site;
};

struct Thread {
  Agent agent;  // agent.id is its number in the unit
  Cta* cta = nullptr;
  int index = 0;           // in the CTA
  Fiber* fiber = nullptr;  // once started
  bool finished = false;
  bool blocked = false;
  const char* call = "";  // where it is blocked
  Site site;
  std::string detail;

  std::vector<Copy> copies;
  int commits = 0;
  std::map<const MBarrierState*, int> seen;  // phases, by its own waiting
  bool cluster_arrived = false;
  unsigned cluster_generation = 0;  // that it has arrived in

  int warp() const { return index / kWarp; }
  int lane() const { return index % kWarp; }
  std::string name() const;
};

class Machine final : private Names {
 public:
  struct Kernel {
    const char* name;
    int threads;
    void (*run)(const void* params, EmulatedContext& x);
    const void* params;
  };

  // Throws KernelError if the kernel breaks a rule, Error if a device would refuse the launch.
  static void launch(const Kernel& kernel, const Grid& grid);

  int threads() const { return kernel_.threads; }
  int blocks() const { return grid_.blocks; }
  int cluster_size() const { return grid_.cluster; }

  // What the calls of the context come down to; `self` is the thread that runs.
  void sync(Thread& self, Site site);
  void sync(Thread& self, int id, int threads, Site site);
  void sync_warp(Thread& self, Site site);
  // Brings `words` to a meeting of the warp, and returns what each lane has brought.
  const Warp::Brought& exchange(Thread& self, const std::uint32_t* words, int count, const char* call,
                                Site site);

  void copy_later(Thread& self, Copy copy);
  void copies_wait(Thread& self, int pending);

  void mbarrier_init(Thread& self, int offset, int arrivals, Site site);
  void mbarrier_arrive(Thread& self, int offset, int bytes, Site site);
  void mbarrier_wait(Thread& self, int offset, int parity, Site site);
  void fence_mbarrier_init(Thread& self);
  void fence_proxy_async(Thread& self);

  // `data` of these bytes, or null: a copy of the thread's own shared memory at `from`.
  void send(Thread& self, Cta& to, int offset, const void* data, int from, int bytes, int barrier_offset,
            Site site);
  void cluster_arrive(Thread& self, Site site);
  void cluster_wait(Thread& self, Site site);
  Cta& cta_of_rank(Thread& self, int rank, Site site) const;

  void load_coherent(Thread& self, const void* from, void* to, int bytes, Site site);
  void store_coherent(Thread& self, void* to, const void* from, int bytes, Site site);
  // Releases; what the flag was before.
  std::uint32_t add(Thread& self, std::uint32_t* flag, std::uint32_t n, bool acquires);
  void wait_acquire(Thread& self, const std::uint32_t* flag, std::uint32_t at_least, Site site);

 private:
  struct InFlight {
    Cta* to = nullptr;
    int offset = 0;
    int bytes = 0;
    Cta* source = nullptr;  // of a bulk copy, else null
    int from = 0;
    std::array<unsigned char, 16> data = {};
    MBarrierState* barrier = nullptr;
    Agent sender;
    Site site;
  };
  struct Flag {
    Clock clock;
    Threads waiting;
  };
  // Who wrote an address last by store_coherent.
  struct Write {
    int id = 0;
    std::uint32_t epoch = 0;
    Site site;
  };

  Machine(const Kernel& kernel, const Grid& grid);
  ~Machine();
  void run_all();
  void run_unit(int first_block, int blocks);
  std::string name_of(int id) const override;

  // Threads.
  static void worker(void* machine);
  void run(Thread& thread, Fiber& fiber);
  void run_another(Fiber& fiber);
  void finish(Thread& thread);
  void fail(std::exception_ptr error);
  [[noreturn]] void refuse(const std::string& what) const { throw KernelError(what); }
  void check_nobody_left(const Thread& self, int finished, const char* call, Site site) const;

  // Scheduling.
  void make_ready(Thread* thread);
  void wake(Threads& waiting);
  void block(Thread& self, const char* call, Site site, std::string detail = {});
  void maybe_yield(Thread& self);
  void leave(Thread& self);
  Fiber* fiber_for(Thread* next);
  void add_fiber();
  Thread* choose();
  Thread* take_ready();
  bool chance(unsigned one_in) { return is_random_ && random() % one_in == 0; }
  std::uint64_t random();
  std::string who_waits() const;

  // Whether `self` was the last.
  void meet(Thread& self, Meeting& meeting, int expected, const char* call, Site site, bool orders,
            bool one_place);

  // The lanes of a warp, at one place, for what they have to do together without being ordered by it.
  void warp_together(Thread& self, const char* call, Site site);
  // The mbarrier there, for `self` to use.
  MBarrierState& mbarrier(Thread& self, Cta& cta, int offset, Site site);
  void complete_phase_if_done(MBarrierState& barrier);
  void deliver(std::size_t which);
  void publish(Cta& cta);

  Kernel kernel_;
  Grid grid_;
  Schedule schedule_;
  bool is_random_;
  std::uint64_t random_state_;

  std::vector<std::unique_ptr<Cta>> ctas_;  // of the unit
  std::vector<Cluster> clusters_;
  std::vector<Thread> threads_;
  int unfinished_ = 0;
  std::deque<Thread*> ready_[2];  // to be preferred, others
  std::vector<InFlight> in_flight_;
  std::vector<const MBarrierState*> mbarriers_;  // by id, less the threads
  std::unordered_map<const std::uint32_t*, Flag> flags_;
  std::unordered_map<std::uintptr_t, Write> writes_;  // by every second byte

  Fiber caller_;
  Fiber* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;  // with nothing to run
  Thread* to_start_ = nullptr;
  std::exception_ptr failure_;
};

}  // namespace fastrnn::cuda::emulated
