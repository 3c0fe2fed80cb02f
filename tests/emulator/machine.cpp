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

thread_local Schedule schedule = {Policy::in_order, 0, std::getenv("FASTRNN_EMULATED_RACES") != nullptr};

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
  const int clusters = limits.cluster > 1 ? 2 * limits.cluster : 1;
  if (grid.cluster < 1 || grid.blocks % grid.cluster != 0 || grid.cluster > clusters) {
    refuse(std::to_string(grid.blocks) + " blocks in clusters of " + std::to_string(grid.cluster));
  }
  for (int i = 0; i < 4; ++i) {
    if (grid.cluster == 2 << i && limits.clusters[i] == 0)
      refuse("the device has no clusters of " + std::to_string(grid.cluster));
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
  warp_together(self, "sync", site);
  meet(self, self.cta->named[id], threads, "sync", site, true, false);
}

void Machine::warp_together(Thread& self, const char* call, Site site) {
  Warp& warp = self.cta->warps[static_cast<std::size_t>(self.warp())];
  check_nobody_left(self, warp.finished, call, site);
  meet(self, warp.meeting, kWarp, call, site, false, true);
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

}  // namespace fastrnn::cuda::emulated
