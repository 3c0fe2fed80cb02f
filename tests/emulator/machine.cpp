#include "emulator/machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cuda/runtime.h"
#include "emulator/emulated_context.h"
#include "emulator/thread_sanitizer.h"

namespace fastrnn::cuda::emulated {
namespace {

// Unwinds the threads that are left when another has failed.
struct Cancelled {};

thread_local Schedule schedule;

// Kept from launch to launch for the memory that they own.
thread_local std::vector<std::unique_ptr<Cta>> spare_ctas;

// "3-5, 7" of rising numbers.
std::string ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (i ? ", " : "") + std::to_string(numbers[i]);
    if (last > i) text += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return text;
}

void check_limits(const Machine::Kernel& kernel, const Grid& grid) {
  const Limits& limits = device_info(current_device()).limits;
  const auto refuse = [&](const std::string& what) { throw Error(std::string(kernel.name) + ": " + what); };
  if (kernel.threads > limits.threads_per_block) refuse(std::to_string(kernel.threads) + " threads in a CTA");
  if (grid.blocks < 0) refuse(std::to_string(grid.blocks) + " blocks");
  if (grid.shared < 0 || grid.shared > limits.shared_per_block) {
    refuse(std::to_string(grid.shared) + " bytes of shared memory; the device has " +
           std::to_string(limits.shared_per_block));
  }
  if (grid.cluster < 1 || grid.blocks % grid.cluster != 0 || grid.cluster > 2 * limits.cluster) {
    refuse(std::to_string(grid.blocks) + " blocks in clusters of " + std::to_string(grid.cluster));
  }
  if (grid.cooperative && grid.blocks > limits.processors) {
    refuse(std::to_string(grid.blocks) + " blocks at once on " + std::to_string(limits.processors) +
           " processors");
  }
}

}  // namespace

ScheduleScope::ScheduleScope(Schedule now) : before_(schedule) { schedule = now; }
ScheduleScope::~ScheduleScope() { schedule = before_; }
const Schedule& current_schedule() { return schedule; }

std::vector<Schedule> all_schedules(int seeds) {
  std::vector<Schedule> all = {{Policy::in_order, 0, true}, {Policy::reverse, 0, true}};
  for (int seed = 0; seed < seeds; ++seed) {
    for (const Policy policy : {Policy::random, Policy::warp_ahead, Policy::cta_starved}) {
      all.push_back({policy, static_cast<std::uint64_t>(seed), true});
    }
  }
  return all;
}

std::string Thread::name() const { return "thread " + std::to_string(index) + " of " + cta->name(); }

// ---- a launch

void Machine::launch(const Kernel& kernel, const Grid& grid) {
  check_limits(kernel, grid);
  if (grid.blocks == 0) return;
  Machine(kernel, grid).run_all();
}

Machine::Machine(const Kernel& kernel, const Grid& grid)
    : kernel_(kernel),
      grid_(grid),
      schedule_(current_schedule()),
      is_random_(schedule_.policy != Policy::in_order && schedule_.policy != Policy::reverse),
      random_state_(schedule_.seed * 0x9E3779B97F4A7C15u + 1),
      running_(&caller_) {}

// Here and no earlier: units do not come one after another for ThreadSanitizer.
Machine::~Machine() {
  ordered_after(this);
  for (auto& cta : ctas_) spare_ctas.push_back(std::move(cta));
}

void Machine::run_all() {
  const int unit = grid_.cooperative ? grid_.blocks : grid_.cluster;
  const int units = grid_.blocks / unit;
  std::vector<int> order(static_cast<std::size_t>(units));
  for (int i = 0; i < units; ++i) order[static_cast<std::size_t>(i)] = i;
  if (schedule_.policy == Policy::reverse) std::reverse(order.begin(), order.end());
  if (is_random_) {
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }
  for (const int i : order) run_unit(i * unit, unit);
}

void Machine::run_unit(int first_block, int blocks) {
  const Unwatched unwatched;
  const int clusters = blocks / grid_.cluster;
  clusters_.assign(static_cast<std::size_t>(clusters), Cluster());
  while (static_cast<int>(ctas_.size()) < blocks) {
    if (spare_ctas.empty()) spare_ctas.push_back(std::make_unique<Cta>());
    ctas_.push_back(std::move(spare_ctas.back()));
    spare_ctas.pop_back();
  }
  threads_.assign(static_cast<std::size_t>(blocks * kernel_.threads), Thread());
  unfinished_ = static_cast<int>(threads_.size());
  mbarriers_.clear();
  writes_.clear();
  flags_.clear();
  for (int i = 0; i < blocks; ++i) {
    Cta& cta = *ctas_[static_cast<std::size_t>(i)];
    cta.block = first_block + i;
    cta.rank = cta.block % grid_.cluster;
    cta.cluster = &clusters_[static_cast<std::size_t>(i / grid_.cluster)];
    cta.cluster->ctas.push_back(&cta);
    cta.memory.reset(grid_.shared, schedule_.races, *this);
    cta.meeting = Meeting();
    cta.named.clear();
    cta.warps.assign(static_cast<std::size_t>(kernel_.threads / kWarp), Warp());
    cta.mbarriers.clear();
    cta.finished = 0;
    cta.end = Clock();
    cta.unpublished.clear();
    for (int j = 0; j < kernel_.threads; ++j) {
      const int id = i * kernel_.threads + j;
      Thread& thread = threads_[static_cast<std::size_t>(id)];
      thread.agent.id = id;
      thread.cta = &cta;
      thread.index = j;
      make_ready(&thread);
    }
  }
  // A fiber that another creates comes after it, in ThreadSanitizer's eyes: hence all of them now.
  while (kThreadSanitizer && idle_.size() < threads_.size()) add_fiber();
  running_ = fiber_for(choose());
  caller_.switch_to(*running_);

  idle_.clear();
  fibers_.clear();
  if (failure_) std::rethrow_exception(failure_);
  for (const auto& cta : ctas_) publish(*cta);
}

std::string Machine::name_of(int id) const {
  if (id < static_cast<int>(threads_.size())) return threads_[static_cast<std::size_t>(id)].name();
  const MBarrierState& barrier = *mbarriers_[static_cast<std::size_t>(id) - threads_.size()];
  return "a store that the mbarrier at byte " + std::to_string(barrier.offset) + " of " +
         barrier.cta->name() + " counts";
}

// ---- threads

FRNN_UNWATCHED void Machine::worker(void* machine) {
  auto& self = *static_cast<Machine*>(machine);
  Fiber* const fiber = self.running_;
  for (;;) {
    self.run(*self.to_start_, *fiber);
    ordered_before(&self);
    self.run_another(*fiber);
  }
}

// A thread has finished on this fiber; returns when there is another to start.
void Machine::run_another(Fiber& fiber) {
  Fiber* to = nullptr;
  {
    const Unwatched unwatched;
    Thread* const next = choose();
    if (next && !next->fiber && !kThreadSanitizer) {
      to_start_ = next;
      return;
    }
    if (!kThreadSanitizer) idle_.push_back(&fiber);
    to = running_ = fiber_for(next);
  }
  fiber.switch_to(*to);
}

FRNN_UNWATCHED void Machine::run(Thread& thread, Fiber& fiber) {
  thread.fiber = &fiber;
  try {
    EmulatedContext x(*this, thread);
    kernel_.run(kernel_.params, x);
    finish(thread);
  } catch (const Cancelled&) {
  } catch (const KernelError& error) {
    fail(std::make_exception_ptr(KernelError(std::string(kernel_.name) + ": " + error.what())));
  } catch (...) {
    fail(std::current_exception());
  }
  thread.finished = true;
  --unfinished_;
}

// A thread has come to its end: may it leave?
void Machine::finish(Thread& thread) {
  const Unwatched unwatched;
  Cta& cta = *thread.cta;
  Warp& warp = cta.warps[static_cast<std::size_t>(thread.warp())];
  const auto left = [&](const char* call, Site site) {
    refuse("early exit: " + thread.name() + " has returned, but others wait for it in " + call + " at " +
           site.text());
  };
  if (!cta.meeting.here.empty()) left(cta.meeting.call, cta.meeting.site);
  if (!warp.meeting.here.empty()) left(warp.meeting.call, warp.meeting.site);
  if (thread.cluster_arrived)
    refuse("early exit: " + thread.name() + " has returned without its cluster_wait");
  if (cta.cluster->arrived > 0) left(cta.cluster->call, cta.cluster->site);
  ++warp.finished;
  ++cta.finished;
  if (!schedule_.races) return;
  thread.agent.release(cta.end);
  if (cta.finished == kernel_.threads) cta.memory.check_end(cta.end, cta.name());
}

void Machine::check_nobody_left(const Thread& self, int finished, const char* call, Site site) const {
  if (finished == 0) return;
  for (const Thread& other : threads_) {
    if (other.cta->cluster == self.cta->cluster && other.finished) {
      refuse("early exit: " + other.name() + " has returned, but " + self.name() + " waits for it in " +
             call + " at " + site.text());
    }
  }
}

void Machine::fail(std::exception_ptr error) {
  const Unwatched unwatched;
  if (failure_) return;
  failure_ = error;
  for (auto& level : ready_) {  // those that never started need not
    for (Thread* thread : level) {
      if (!thread->fiber) {
        thread->finished = true;
        --unfinished_;
      }
    }
    level.erase(std::remove_if(level.begin(), level.end(), [](Thread* thread) { return thread->finished; }),
                level.end());
  }
  in_flight_.clear();
  for (Thread& thread : threads_) {
    if (thread.blocked) make_ready(&thread);
  }
}

// ---- scheduling

std::uint64_t Machine::random() {  // splitmix64
  std::uint64_t z = random_state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

void Machine::make_ready(Thread* thread) {
  thread->blocked = false;
  const int warps = static_cast<int>(threads_.size()) / kWarp, ctas = static_cast<int>(ctas_.size());
  bool later = false;
  if (schedule_.policy == Policy::warp_ahead) {
    later = thread->agent.id / kWarp != static_cast<int>(schedule_.seed % static_cast<std::uint64_t>(warps));
  } else if (schedule_.policy == Policy::cta_starved) {
    later = thread->agent.id / kernel_.threads ==
            static_cast<int>(schedule_.seed % static_cast<std::uint64_t>(ctas));
  }
  ready_[later].push_back(thread);
}

void Machine::wake(Threads& waiting) {
  for (Thread* thread : waiting) make_ready(thread);
  waiting.clear();
}

Thread* Machine::take_ready() {
  for (auto& level : ready_) {
    if (level.empty()) continue;
    if (is_random_) std::swap(level[random() % level.size()], level.back());
    Thread* thread = schedule_.policy == Policy::in_order ? level.front() : level.back();
    schedule_.policy == Policy::in_order ? level.pop_front() : level.pop_back();
    return thread;
  }
  return nullptr;
}

// The thread to run next; null when all have finished.
Thread* Machine::choose() {
  for (;;) {
    if (!in_flight_.empty() && chance(4)) deliver(random() % in_flight_.size());
    if (is_random_ && chance(16)) publish(*ctas_[random() % ctas_.size()]);
    if (Thread* thread = take_ready()) return thread;
    if (!in_flight_.empty()) {
      deliver(is_random_ ? random() % in_flight_.size() : in_flight_.size() - 1);
    } else if (unfinished_ == 0) {
      return nullptr;
    } else {
      fail(std::make_exception_ptr(KernelError(std::string(kernel_.name) + ": deadlock: " + who_waits())));
    }
  }
}

// Where `next` goes on, or begins; null: the caller of launch.
Fiber* Machine::fiber_for(Thread* next) {
  if (!next) return &caller_;
  if (next->fiber) return next->fiber;
  if (idle_.empty()) add_fiber();
  Fiber* const fiber = idle_.back();
  idle_.pop_back();
  to_start_ = next;
  return fiber;
}

// Lets others run until `self` is chosen.
void Machine::leave(Thread& self) {
  Thread* const next = choose();
  if (next != &self) {
    running_ = fiber_for(next);
    self.fiber->switch_to(*running_);
  }
  if (failure_) throw Cancelled();
}

void Machine::add_fiber() {
  fibers_.push_back(std::make_unique<Fiber>(&Machine::worker, this));
  idle_.push_back(fibers_.back().get());
}

void Machine::block(Thread& self, const char* call, Site site, std::string detail) {
  self.blocked = true;
  self.call = call;
  self.site = site;
  self.detail = std::move(detail);
  leave(self);
}

void Machine::maybe_yield(Thread& self) {
  if (!chance(8)) return;
  make_ready(&self);
  leave(self);
}

std::string Machine::who_waits() const {
  // Threads of a CTA that wait in one place make one line.
  std::map<std::pair<int, std::string>, std::vector<int>> groups;
  std::map<int, std::vector<int>> returned;
  for (const Thread& thread : threads_) {
    if (thread.blocked) {
      const std::string where = std::string(thread.call) + " at " + thread.site.text() + thread.detail;
      groups[{thread.cta->block, where}].push_back(thread.index);
    } else if (thread.finished) {
      returned[thread.cta->block].push_back(thread.index);
    }
  }
  std::string text = "every thread that has not returned waits";
  for (const auto& group : groups) {
    text += "\n  CTA " + std::to_string(group.first.first) + ", threads " + ranges(group.second) + ": " +
            group.first.second;
  }
  for (const auto& group : returned) {
    text += "\n  CTA " + std::to_string(group.first) + ", threads " + ranges(group.second) + ": returned";
  }
  return text;
}

// ---- meetings

void Machine::meet(Thread& self, Meeting& meeting, int expected, const char* call, Site site, bool orders,
                   bool one_place) {
  if (meeting.here.empty()) {
    meeting.call = call;
    meeting.site = site;
    meeting.expected = expected;
  } else if (meeting.expected != expected) {
    refuse("divergent collective: " + self.name() + " expects " + std::to_string(expected) + " threads in " +
           call + " at " + site.text() + ", " + meeting.here[0]->name() + " " +
           std::to_string(meeting.expected));
  } else if (one_place && (meeting.site != site || std::strcmp(meeting.call, call) != 0)) {
    refuse("divergent collective: " + self.name() + " is in " + call + " at " + site.text() + " while " +
           meeting.here[0]->name() + " waits for it in " + meeting.call + " at " + meeting.site.text());
  }
  meeting.here.push_back(&self);
  const unsigned generation = meeting.generation;
  if (orders) ordered_before(meeting.order + generation % 2);
  if (static_cast<int>(meeting.here.size()) < expected) {
    block(self, call, site);
    if (orders) ordered_after(meeting.order + generation % 2);
    return;
  }
  if (orders) ordered_after(meeting.order + generation % 2);
  if (orders && schedule_.races) {
    Clock all;
    const Thread* before = nullptr;
    for (Thread* thread : meeting.here) {
      if (!before || !before->agent.clock.same_as(thread->agent.clock)) all.join(thread->agent.clock);
      before = thread;
    }
    for (Thread* thread : meeting.here) all.set(thread->agent.id, thread->agent.epoch++);
    for (Thread* thread : meeting.here) thread->agent.clock = all;
  }
  ++meeting.generation;
  meeting.here.pop_back();
  wake(meeting.here);
  maybe_yield(self);
}

void Machine::sync(Thread& self, Site site) {
  check_nobody_left(self, self.cta->finished, "sync", site);
  meet(self, self.cta->meeting, kernel_.threads, "sync", site, true, true);
}

void Machine::sync(Thread& self, int id, int threads, Site site) {
  if (id < 1 || id > 15 || threads < kWarp || threads % kWarp != 0 || threads > kernel_.threads) {
    refuse("sync(" + std::to_string(id) + ", " + std::to_string(threads) + ") at " + site.text() +
           ": expected a barrier from 1 to 15, and whole warps");
  }
  meet(self, self.cta->named[id], threads, "sync", site, true, false);
}

void Machine::sync_warp(Thread& self, Site site) {
  Warp& warp = self.cta->warps[static_cast<std::size_t>(self.warp())];
  check_nobody_left(self, warp.finished, "sync_warp", site);
  meet(self, warp.meeting, kWarp, "sync_warp", site, true, true);
}

const Warp::Brought& Machine::exchange(Thread& self, const std::uint32_t* words, int count, const char* call,
                                       Site site) {
  Warp& warp = self.cta->warps[static_cast<std::size_t>(self.warp())];
  check_nobody_left(self, warp.finished, call, site);
  Warp::Brought& brought = warp.brought[warp.meeting.generation % 2];
  std::copy(words, words + count, brought[static_cast<std::size_t>(self.lane())].begin());
  meet(self, warp.meeting, kWarp, call, site, false, true);
  return brought;
}

// ---- cp.async

void Machine::copy_later(Thread& self, Copy copy) {
  self.cta->memory.issued(self.agent, copy.offset, 16, copy.site);
  self.copies.push_back(copy);
  maybe_yield(self);
}

void Machine::copies_wait(Thread& self, int pending) {
  const auto done = std::stable_partition(self.copies.begin(), self.copies.end(), [&](const Copy& copy) {
    return copy.group >= self.commits - pending;
  });
  for (auto copy = done; copy != self.copies.end(); ++copy) {
    unsigned char* to = self.cta->memory.data() + copy->offset;
    std::memset(to, 0, 16);
    if (copy->bytes > 0) std::memcpy(to, copy->from, static_cast<std::size_t>(copy->bytes));
    self.cta->memory.arrived(self.agent.id, self.agent.epoch, copy->offset, 16, copy->site);
  }
  self.copies.erase(done, self.copies.end());
}

// ---- mbarriers

MBarrierState& Machine::mbarrier(Cta& cta, int offset, Site site) {
  const auto found = cta.mbarriers.find(offset);
  if (found == cta.mbarriers.end()) {
    refuse("the mbarrier at byte " + std::to_string(offset) + " of " + cta.name() + ", used at " +
           site.text() + ", has not been initialised");
  }
  return found->second;
}

void Machine::mbarrier_init(Thread& self, int offset, int arrivals, Site site) {
  if (arrivals < 1)
    refuse("mbarrier_init at " + site.text() + " for " + std::to_string(arrivals) + " arrivals");
  self.cta->memory.write(self.agent, offset, sizeof(MBarrier), site);
  if (self.cta->mbarriers.count(offset)) refuse("mbarrier_init at " + site.text() + " of one that is in use");
  MBarrierState& barrier = self.cta->mbarriers[offset];
  barrier.id = static_cast<int>(threads_.size() + mbarriers_.size());
  mbarriers_.push_back(&barrier);
  barrier.offset = offset;
  barrier.cta = self.cta;
  barrier.count = barrier.pending = arrivals;
}

void Machine::complete_phase_if_done(MBarrierState& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.completed;
  barrier.pending = barrier.count;
  if (schedule_.races) {
    barrier.complete.join(barrier.arriving);
    barrier.complete.set(barrier.id, static_cast<std::uint32_t>(barrier.completed));
    barrier.arriving = Clock();
  }
  wake(barrier.waiting);
}

void Machine::mbarrier_arrive(Thread& self, int offset, int bytes, Site site) {
  maybe_yield(self);
  MBarrierState& barrier = mbarrier(*self.cta, offset, site);
  self.cta->memory.read(self.agent, offset, sizeof(MBarrier), site);
  if (barrier.pending == 0) {
    refuse("wrong mbarrier phase: " + self.name() + " arrives at " + site.text() +
           " at the mbarrier at byte " + std::to_string(offset) + ", for which phase " +
           std::to_string(barrier.completed) + " has all its arrivals and still waits for " +
           std::to_string(barrier.bytes) + " bytes");
  }
  barrier.bytes += bytes;
  --barrier.pending;
  ordered_before(barrier.order + barrier.completed % 2);
  if (schedule_.races) self.agent.release(barrier.arriving);
  complete_phase_if_done(barrier);
}

void Machine::mbarrier_wait(Thread& self, int offset, int parity, Site site) {
  maybe_yield(self);
  MBarrierState& barrier = mbarrier(*self.cta, offset, site);
  self.cta->memory.read(self.agent, offset, sizeof(MBarrier), site);
  int& seen = self.seen[&barrier];
  int phase = barrier.completed;
  if (phase % 2 != parity) {
    --phase;  // the one before, which is complete
    if (phase < seen) {
      refuse("wrong mbarrier phase: " + self.name() + " waits at " + site.text() + " for parity " +
             std::to_string(parity) + " of the mbarrier at byte " + std::to_string(offset) +
             ", which is in phase " + std::to_string(barrier.completed) + ": it has " +
             (phase < 0 ? "never completed one of that parity" : "waited for that phase before"));
    }
  }
  while (barrier.completed <= phase) {
    barrier.waiting.push_back(&self);
    block(self, "mbarrier_wait_parity", site,
          " for phase " + std::to_string(phase) + " of the mbarrier at byte " + std::to_string(offset) +
              ": " + std::to_string(barrier.pending) + " arrivals and " + std::to_string(barrier.bytes) +
              " bytes missing");
  }
  seen = phase + 1;
  ordered_after(barrier.order + phase % 2);
  if (schedule_.races) self.agent.clock.join(barrier.complete);
}

// ---- clusters

Cta& Machine::cta_of_rank(Thread& self, int rank, Site site) const {
  if (rank < 0 || rank >= grid_.cluster) {
    refuse("map_rank at " + site.text() + ": rank " + std::to_string(rank) + " in a cluster of " +
           std::to_string(grid_.cluster));
  }
  return *self.cta->cluster->ctas[static_cast<std::size_t>(rank)];
}

void Machine::send(Thread& self, Cta& to, int offset, const void* data, int from, int bytes,
                   int barrier_offset, Site site) {
  maybe_yield(self);
  if (to.finished == kernel_.threads) {
    refuse(to.name() + " exited before its peers were done: " + self.name() + " stores to its memory at " +
           site.text());
  }
  MBarrierState& barrier = mbarrier(to, barrier_offset, site);
  to.memory.read(self.agent, barrier_offset, sizeof(MBarrier), site);
  InFlight store;
  store.to = &to;
  store.offset = offset;
  store.bytes = bytes;
  store.barrier = &barrier;
  store.sender = self.agent;
  store.site = site;
  ++self.agent.epoch;
  to.memory.issued(store.sender, offset, bytes, site);
  ordered_before(barrier.order + barrier.completed % 2);
  if (data) {
    std::memcpy(store.data.data(), data, static_cast<std::size_t>(bytes));
  } else {
    // The source is free again in the phase that the bytes complete: of the receiver, whom the sender then
    // hears of.
    self.cta->memory.read_until(store.sender, store.barrier->id,
                                static_cast<std::uint32_t>(store.barrier->completed + 1), from, bytes, site);
    store.source = self.cta;
    store.from = from;
  }
  in_flight_.push_back(store);
  if (schedule_.policy == Policy::in_order) deliver(in_flight_.size() - 1);
}

void Machine::deliver(std::size_t which) {
  std::swap(in_flight_[which], in_flight_.back());
  const InFlight store = in_flight_.back();
  in_flight_.pop_back();
  MBarrierState& barrier = *store.barrier;
  if (store.to->finished == kernel_.threads) {
    fail(std::make_exception_ptr(
        KernelError(std::string(kernel_.name) + ": " + store.to->name() +
                    " exited before its peers were done: what was stored to its memory at " +
                    store.site.text() + " was still under way")));
    return;
  }
  const unsigned char* from = store.source ? store.source->memory.data() + store.from : store.data.data();
  std::memcpy(store.to->memory.data() + store.offset, from, static_cast<std::size_t>(store.bytes));
  store.to->memory.arrived(barrier.id, static_cast<std::uint32_t>(barrier.completed + 1), store.offset,
                           store.bytes, store.site);
  barrier.bytes -= store.bytes;
  if (schedule_.races) {
    Agent sender = store.sender;
    sender.release(barrier.arriving);
  }
  complete_phase_if_done(barrier);
}

void Machine::cluster_arrive(Thread& self, Site site) {
  Cluster& cluster = *self.cta->cluster;
  maybe_yield(self);
  if (self.cluster_arrived) refuse(self.name() + " is in cluster_arrive twice, at " + site.text());
  for (const Cta* cta : cluster.ctas) check_nobody_left(self, cta->finished, "cluster_arrive", site);
  self.cluster_arrived = true;
  self.cluster_generation = cluster.generation;
  cluster.site = site;
  ordered_before(cluster.order + cluster.generation % 2);
  if (schedule_.races) self.agent.release(cluster.arriving);
  if (++cluster.arrived < static_cast<int>(cluster.ctas.size()) * kernel_.threads) return;
  cluster.arrived = 0;
  ++cluster.generation;
  cluster.complete.join(cluster.arriving);
  cluster.arriving = Clock();
  wake(cluster.waiting);
}

void Machine::cluster_wait(Thread& self, Site site) {
  Cluster& cluster = *self.cta->cluster;
  if (!self.cluster_arrived)
    refuse(self.name() + " is in cluster_wait at " + site.text() + " but has not arrived");
  while (cluster.generation == self.cluster_generation) {
    cluster.waiting.push_back(&self);
    block(self, "cluster_wait", site, ": " + std::to_string(cluster.arrived) + " threads have arrived");
  }
  self.cluster_arrived = false;
  ordered_after(cluster.order + self.cluster_generation % 2);
  if (schedule_.races) self.agent.clock.join(cluster.complete);
}

// ---- other CTAs of the grid

void Machine::publish(Cta& cta) {
  for (const auto& store : cta.unpublished) {
    std::memcpy(reinterpret_cast<void*>(store.first), store.second.data.data(),
                static_cast<std::size_t>(store.second.bytes));
  }
  cta.unpublished.clear();
}

void Machine::load_coherent(Thread& self, const void* from, void* to, int bytes, Site site) {
  maybe_yield(self);
  const auto address = reinterpret_cast<std::uintptr_t>(from);
  for (std::uintptr_t at = address; schedule_.races && at < address + static_cast<std::uintptr_t>(bytes);
       at += 2) {
    const auto write = writes_.find(at);
    if (write == writes_.end() || self.agent.knows(write->second.id, write->second.epoch)) continue;
    refuse("race: " + self.name() + " reads at " + site.text() + " what " + name_of(write->second.id) +
           " stores at " + write->second.site.text() + ", and nothing orders the two: global memory");
  }
  auto& own = self.cta->unpublished;  // its own CTA sees them
  const auto store = own.find(address);
  if (store != own.end() && store->second.bytes == bytes) {
    std::memcpy(to, store->second.data.data(), static_cast<std::size_t>(bytes));
    return;
  }
  const auto near = own.lower_bound(address - 15);
  if (near != own.end() && near->first < address + static_cast<std::uintptr_t>(bytes)) publish(*self.cta);
  std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

void Machine::store_coherent(Thread& self, void* to, const void* from, int bytes, Site site) {
  maybe_yield(self);
  const auto address = reinterpret_cast<std::uintptr_t>(to);
  for (std::uintptr_t at = address; schedule_.races && at < address + static_cast<std::uintptr_t>(bytes);
       at += 2) {
    writes_[at] = {self.agent.id, self.agent.epoch, site};
  }
  auto& own = self.cta->unpublished;
  const auto near = own.lower_bound(address - 15);
  if (near != own.end() && near->first < address + static_cast<std::uintptr_t>(bytes)) publish(*self.cta);
  Cta::Store store;
  store.bytes = bytes;
  std::memcpy(store.data.data(), from, static_cast<std::size_t>(bytes));
  own[address] = store;
  if (schedule_.policy == Policy::in_order) publish(*self.cta);
}

std::uint32_t Machine::add(Thread& self, std::uint32_t* flag, std::uint32_t n, bool acquires) {
  maybe_yield(self);
  publish(*self.cta);
  const std::uint32_t before = *flag;
  if (acquires) ordered_after(flag);
  ordered_before(flag);
  *flag += n;
  Flag& state = flags_[flag];
  if (schedule_.races && acquires) self.agent.clock.join(state.clock);
  if (schedule_.races) self.agent.release(state.clock);
  wake(state.waiting);
  return before;
}

void Machine::wait_acquire(Thread& self, const std::uint32_t* flag, std::uint32_t at_least, Site site) {
  maybe_yield(self);
  while (*flag < at_least) {
    flags_[flag].waiting.push_back(&self);
    block(self, "wait_acquire", site,
          " for " + std::to_string(at_least) + ", where " + std::to_string(*flag) + " have been added");
  }
  ordered_after(flag);
  if (schedule_.races) self.agent.clock.join(flags_[flag].clock);
}

}  // namespace fastrnn::cuda::emulated
