// The part of the machine for what goes on behind the threads' backs and between CTAs.
#include <algorithm>
#include <cstring>

#include "emulator/machine.h"
#include "emulator/thread_sanitizer.h"

namespace fastrnn::cuda::emulated {

// ---- cp.async

void Machine::copy_later(Thread& self, Copy copy) {
  self.cta->memory.issued(self.agent, copy.offset, copy.size, copy.site);
  self.copies.push_back(copy);
  maybe_yield(self);
}

void Machine::copies_wait(Thread& self, int pending) {
  const auto done = std::stable_partition(self.copies.begin(), self.copies.end(), [&](const Copy& copy) {
    return copy.group >= self.commits - pending;
  });
  for (auto copy = done; copy != self.copies.end(); ++copy) {
    unsigned char* to = self.cta->memory.data() + copy->offset;
    std::memset(to, 0, static_cast<std::size_t>(copy->size));
    if (copy->bytes > 0) std::memcpy(to, copy->from, static_cast<std::size_t>(copy->bytes));
    self.cta->memory.arrived(self.agent.id, self.agent.epoch, copy->offset, copy->size, copy->site,
                             SharedMemory::kStored);
  }
  self.copies.erase(done, self.copies.end());
}

// ---- mbarriers

MBarrierState& Machine::mbarrier(Thread& self, Cta& cta, int offset, Site site) {
  const auto found = cta.mbarriers.find(offset);
  if (found == cta.mbarriers.end()) {
    refuse("the mbarrier at byte " + std::to_string(offset) + " of " + cta.name() + ", used at " +
           site.text() + ", has not been initialised");
  }
  if (!found->second.fenced && found->second.maker != &self) {
    refuse("missing fence_mbarrier_init: " + self.name() + " uses at " + site.text() +
           " the mbarrier at byte " + std::to_string(offset) + " of " + cta.name());
  }
  cta.memory.use_barrier(self.agent, offset, sizeof(MBarrier), site);
  return found->second;
}

void Machine::mbarrier_init(Thread& self, int offset, int arrivals, Site site) {
  if (arrivals < 1 || arrivals > kMBarrierMost)
    refuse("mbarrier_init at " + site.text() + " for " + std::to_string(arrivals) + " arrivals");
  if (self.cta->mbarriers.count(offset)) refuse("mbarrier_init at " + site.text() + " of one that is in use");
  self.cta->memory.make_barrier(self.agent, offset, sizeof(MBarrier), site);
  MBarrierState& barrier = self.cta->mbarriers[offset];
  barrier.id = static_cast<int>(threads_.size() + mbarriers_.size());
  mbarriers_.push_back(&barrier);
  barrier.offset = offset;
  barrier.cta = self.cta;
  barrier.maker = &self;
  barrier.count = barrier.pending = arrivals;
}

void Machine::fence_mbarrier_init(Thread& self) {
  for (auto& each : self.cta->mbarriers) each.second.fenced |= each.second.maker == &self;
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
  MBarrierState& barrier = mbarrier(self, *self.cta, offset, site);
  if (barrier.noticed < barrier.completed) {
    refuse("wrong mbarrier phase: " + self.name() + " arrives at " + site.text() +
           " at the mbarrier at byte " + std::to_string(offset) +
           " before anybody has waited for its phase " + std::to_string(barrier.completed - 1));
  }
  if (barrier.pending == 0) {
    refuse("wrong mbarrier phase: " + self.name() + " arrives at " + site.text() +
           " at the mbarrier at byte " + std::to_string(offset) + ", for which phase " +
           std::to_string(barrier.completed) + " has all its arrivals and still waits for " +
           std::to_string(barrier.bytes) + " bytes");
  }
  barrier.bytes += bytes;
  if (bytes < 0 || barrier.bytes > kMBarrierMost) {
    refuse("too many bytes: " + self.name() + " at " + site.text() + " makes the mbarrier at byte " +
           std::to_string(offset) + " expect " + std::to_string(barrier.bytes));
  }
  --barrier.pending;
  ordered_before(barrier.order + barrier.completed % 2);
  if (schedule_.races) self.agent.release(barrier.arriving);
  complete_phase_if_done(barrier);
}

void Machine::mbarrier_wait(Thread& self, int offset, int parity, Site site) {
  maybe_yield(self);
  MBarrierState& barrier = mbarrier(self, *self.cta, offset, site);
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
  if (barrier.completed > phase + 1) {  // whose parity is that of the phase under way: it would wait on
    refuse("wrong mbarrier phase: " + self.name() + " has waited at " + site.text() + " for phase " +
           std::to_string(phase) + " of the mbarrier at byte " + std::to_string(offset) +
           ", which meanwhile completed another one");
  }
  seen = phase + 1;
  barrier.noticed = std::max(barrier.noticed, seen);
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

void Machine::fence_proxy_async(Thread& self) { self.cta->memory.fence_proxy_async(self.agent); }

void Machine::send(Thread& self, Cta& to, int offset, const void* data, int from, int bytes,
                   int barrier_offset, Site site) {
  maybe_yield(self);
  if (data && grid_.cluster == 1)
    refuse(self.name() + " calls st_async at " + site.text() + " in a cluster of one CTA");
  if (to.finished == kernel_.threads) {
    refuse(to.name() + " exited before its peers were done: " + self.name() + " stores to its memory at " +
           site.text());
  }
  MBarrierState& barrier = mbarrier(self, to, barrier_offset, site);
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
                           store.bytes, store.site,
                           store.source ? SharedMemory::kForAsync : SharedMemory::kStored);
  barrier.bytes -= store.bytes;
  if (barrier.bytes < -kMBarrierMost) {
    fail(std::make_exception_ptr(
        KernelError(std::string(kernel_.name) + ": too many bytes: the mbarrier at byte " +
                    std::to_string(barrier.offset) + " of " + store.to->name() + " has received " +
                    std::to_string(-barrier.bytes) + " that it does not expect")));
    return;
  }
  if (schedule_.races) {
    Agent sender = store.sender;
    sender.release(barrier.arriving);
  }
  complete_phase_if_done(barrier);
}

void Machine::cluster_arrive(Thread& self, Site site) {
  Cluster& cluster = *self.cta->cluster;
  maybe_yield(self);
  warp_together(self, "cluster_arrive", site);
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
  warp_together(self, "cluster_wait", site);
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
