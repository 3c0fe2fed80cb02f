// The context of a kernel under the emulator; cuda/context.h says what each call means.
//
// What is modelled: threads, CTAs, clusters and a cooperative grid with the barriers among them; shared
// memory of exactly the size asked for, its contents unknown until written; warp collectives and the
// fragments of mma; copies and stores that arrive late and in any order; mbarriers with phases, arrivals and
// bytes; the order that all of these give to accesses, so that a race in shared memory is found in any
// schedule; stores for other CTAs that stay unseen until they are published.
//
// What is not: time, registers, how many CTAs fit, bank conflicts, instructions running ahead of each other
// within a warp, caches (except as said), the proxies but for the source of a bulk_copy, atomicity of what is
// wider than a word, and the rounding of a real tensor core.  Global memory is the host's: accesses out of
// bounds are AddressSanitizer's, races in it ThreadSanitizer's to find.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/half.h"
#include "cuda/context.h"
#include "emulator/machine.h"
#include "emulator/mma.h"
#include "emulator/thread_sanitizer.h"

namespace fastrnn::cuda::emulated {

class EmulatedContext {
 public:
  template <class T>
  class Shared {
   public:
    T load(int i, Site site = Site::here()) const {
      const int at = place(i, 1, "load", site);
      x_->check_read(at, sizeof(T), site);
      T value;
      std::memcpy(&value, x_->memory().data() + at, sizeof(T));
      return value;
    }
    void store(int i, T value, Site site = Site::here()) const {
      const int at = place(i, 1, "store", site);
      x_->check_write(at, sizeof(T), site);
      std::memcpy(x_->memory().data() + at, &value, sizeof(T));
    }
    Shared from(int i, Site site = Site::here()) const {
      const int at = place(i, 0, "from", site);
      return Shared(x_, at, count_ - i);
    }

   private:
    friend EmulatedContext;
    Shared(EmulatedContext* x, int offset, int count) : x_(x), offset_(offset), count_(count) {}
    // Where element i begins, if `count` of them from there are inside.
    int place(int i, int count, const char* call, Site site) const {
      if (i < 0 || i + count > count_) out_of_bounds(*x_, i, count, count_, call, site);
      return offset_ + i * static_cast<int>(sizeof(T));
    }
    // The same for `bytes` bytes from the start, on a multiple of `alignment`.
    int piece(int bytes, int alignment, const char* call, Site site) const {
      const int size = static_cast<int>(sizeof(T));
      place(0, (bytes + size - 1) / size, call, site);
      if (offset_ % alignment != 0) misaligned(offset_, alignment, call, site);
      return offset_;
    }

    EmulatedContext* x_;
    int offset_, count_;
  };

  template <class T>
  class Remote {
   public:
    Remote from(int i, Site site = Site::here()) const { return Remote(cta_, local_.from(i, site)); }

   private:
    friend EmulatedContext;
    Remote(Cta* cta, Shared<T> local) : cta_(cta), local_(local) {}
    Cta* cta_;
    Shared<T> local_;  // the same place in the sender's memory: as large, and checked alike
  };

  EmulatedContext(Machine& machine, Thread& thread) : machine_(machine), thread_(thread) {}
  EmulatedContext(const EmulatedContext&) = delete;
  EmulatedContext& operator=(const EmulatedContext&) = delete;

  static constexpr bool kClusters = true;

  int thread() const { return thread_.index; }
  int lane() const { return thread_.lane(); }
  int warp() const { return thread_.warp(); }
  int block() const { return thread_.cta->block; }
  int blocks() const { return machine_.blocks(); }
  int cluster_rank() const { return thread_.cta->rank; }
  int cluster_size() const { return machine_.cluster_size(); }

  template <class T>
  Shared<T> view(Slot<T> slot, Site site = Site::here()) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 2 == 0);
    const int end = slot.offset + slot.count * static_cast<int>(sizeof(T));
    const int bytes = memory().bytes();
    if (slot.offset < 0 || slot.count < 0 || end > bytes) {
      throw KernelError("out of bounds: view at " + site.text() + " ends at byte " + std::to_string(end) +
                        " of " + std::to_string(bytes) + " bytes of shared memory");
    }
    if (slot.offset % static_cast<int>(alignof(T)) != 0) misaligned(slot.offset, alignof(T), "view", site);
    return Shared<T>(this, slot.offset, slot.count);
  }

  void sync(Site site = Site::here()) { enter()->sync(thread_, site); }
  void sync(int id, int threads, Site site = Site::here()) { enter()->sync(thread_, id, threads, site); }
  void sync_warp(Site site = Site::here()) { enter()->sync_warp(thread_, site); }

  template <class T>
  T shuffle(T value, int lane, Site site = Site::here()) {
    return exchange(value, in_warp(lane, "shuffle", site), "shuffle", site);
  }
  template <class T>
  T shuffle_xor(T value, int mask, Site site = Site::here()) {
    return exchange(value, lane() ^ in_warp(mask, "shuffle_xor", site), "shuffle_xor", site);
  }
  template <class T>
  T shuffle_down(T value, int delta, Site site = Site::here()) {
    const int from = lane() + in_warp(delta, "shuffle_down", site);
    return exchange(value, from < kWarp ? from : lane(), "shuffle_down", site);
  }
  std::uint32_t ballot(bool b, Site site = Site::here()) {
    const std::uint32_t mine = b;
    const Warp::Brought& all = enter()->exchange(thread_, &mine, 1, "ballot", site);
    std::uint32_t bits = 0;
    for (std::size_t lane = 0; lane < kWarp; ++lane) bits |= all[lane][0] << lane;
    return bits;
  }

  template <class T>
  Matrices<T> ldmatrix_x4(Shared<T> row, Site site = Site::here()) {
    const Warp::Brought& rows = exchange_row(row, "ldmatrix_x4", site);
    return deal_matrices<T>(rows, lane(), false);
  }
  template <class T>
  Matrices<T> ldmatrix_x4_trans(Shared<T> row, Site site = Site::here()) {
    const Warp::Brought& rows = exchange_row(row, "ldmatrix_x4_trans", site);
    return deal_matrices<T>(rows, lane(), true);
  }
  template <class T>
  void mma(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b, Site site = Site::here()) {
    const std::uint32_t operands[] = {a.word[0], a.word[1], a.word[2], a.word[3], b.word[0], b.word[1]};
    multiply_add<T>(enter()->exchange(thread_, operands, 6, "mma", site), lane(), c);
  }

  template <class T>
  void cp_async_16(Shared<T> to, const T* from, int bytes = 16, Site site = Site::here()) {
    const int offset = to.piece(16, 16, "cp_async_16", site);
    check_alignment(from, 16, "cp_async_16's source", site);
    if (bytes < 0 || bytes > 16) out_of_range(bytes, 16, "cp_async_16", site);
    enter()->copy_later(thread_, {thread_.commits, offset, from, bytes, 16, site});
  }
  template <class T>
  void cp_async_4(Shared<T> to, const T* from, Site site = Site::here()) {
    static_assert(sizeof(T) == 4);
    const int offset = to.piece(4, 4, "cp_async_4", site);
    check_alignment(from, 4, "cp_async_4's source", site);
    enter()->copy_later(thread_, {thread_.commits, offset, from, 4, 4, site});
  }
  void cp_async_commit() {
    const auto machine = enter();
    ++thread_.commits;
  }
  void cp_async_wait(int pending, Site site = Site::here()) {
    if (pending < 0 || pending > 7) out_of_range(pending, 7, "cp_async_wait", site);
    enter()->copies_wait(thread_, pending);
  }

  void mbarrier_init(Shared<MBarrier> barrier, int arrivals, Site site = Site::here()) {
    enter()->mbarrier_init(thread_, barrier.piece(8, 8, "mbarrier_init", site), arrivals, site);
  }
  void mbarrier_arrive(Shared<MBarrier> barrier, Site site = Site::here()) {
    enter()->mbarrier_arrive(thread_, barrier.piece(8, 8, "mbarrier_arrive", site), 0, site);
  }
  void mbarrier_arrive_expect_tx(Shared<MBarrier> barrier, int bytes, Site site = Site::here()) {
    enter()->mbarrier_arrive(thread_, barrier.piece(8, 8, "mbarrier_arrive_expect_tx", site), bytes, site);
  }
  void mbarrier_wait_parity(Shared<MBarrier> barrier, int parity, Site site = Site::here()) {
    enter()->mbarrier_wait(thread_, barrier.piece(8, 8, "mbarrier_wait_parity", site), parity, site);
  }

  template <class T>
  Remote<T> map_rank(Shared<T> place, int rank, Site site = Site::here()) {
    return Remote<T>(&machine_.cta_of_rank(thread_, rank, site), place);
  }
  template <class T, class V>
  void st_async(Remote<T> to, V value, Remote<MBarrier> barrier, Site site = Site::here()) {
    static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
    const int offset = to.local_.piece(sizeof(V), sizeof(V), "st_async", site);
    send(to.cta_, offset, &value, 0, sizeof(V), barrier, site);
  }
  template <class T>
  void bulk_copy(Remote<T> to, Shared<T> from, int bytes, Remote<MBarrier> barrier,
                 Site site = Site::here()) {
    if (bytes % 16 != 0) misaligned(bytes, 16, "bulk_copy's size", site);
    const int offset = to.local_.piece(bytes, 16, "bulk_copy", site);
    send(to.cta_, offset, nullptr, from.piece(bytes, 16, "bulk_copy", site), bytes, barrier, site);
  }
  void cluster_arrive(Site site = Site::here()) { enter()->cluster_arrive(thread_, site); }
  void cluster_wait(Site site = Site::here()) { enter()->cluster_wait(thread_, site); }
  void fence_mbarrier_init() { enter()->fence_mbarrier_init(thread_); }
  void fence_proxy_async() { enter()->fence_proxy_async(thread_); }

  template <class T>
  T load_coherent(const T* from, Site site = Site::here()) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    check_alignment(from, sizeof(T), "load_coherent", site);
    T value;
    enter()->load_coherent(thread_, from, &value, sizeof(T), site);
    return value;
  }
  template <class T>
  void store_coherent(T* to, T value, Site site = Site::here()) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    check_alignment(to, sizeof(T), "store_coherent", site);
    enter()->store_coherent(thread_, to, &value, sizeof(T), site);
  }
  void add_release(std::uint32_t* flag, std::uint32_t n) { enter()->add(thread_, flag, n, false); }
  std::uint32_t fetch_add(std::uint32_t* flag, std::uint32_t n) {
    return enter()->add(thread_, flag, n, true);
  }
  void wait_acquire(const std::uint32_t* flag, std::uint32_t at_least, Site site = Site::here()) {
    enter()->wait_acquire(thread_, flag, at_least, site);
  }

 private:
  // The machine, whose own accesses are no business of ThreadSanitizer's.
  struct Entry {
    Machine* machine;
    Unwatched unwatched;
    Machine* operator->() const { return machine; }
  };
  Entry enter() { return {&machine_, {}}; }
  SharedMemory& memory() const { return thread_.cta->memory; }
  void check_read(int offset, int bytes, Site site) {
    const Unwatched unwatched;
    memory().read(thread_.agent, offset, bytes, site);
  }
  void check_write(int offset, int bytes, Site site) {
    const Unwatched unwatched;
    memory().write(thread_.agent, offset, bytes, site);
  }

  [[noreturn]] static void out_of_bounds(const EmulatedContext& x, int i, int count, int size,
                                         const char* call, Site site);
  [[noreturn]] static void misaligned(int offset, int alignment, const char* call, Site site);
  [[noreturn]] static void out_of_range(int value, int most, const char* call, Site site);
  // Of global memory, where a misaligned access is a fault of the device.
  static void check_alignment(const void* address, int alignment, const char* call, Site site) {
    const auto past =
        static_cast<int>(reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(alignment));
    if (past != 0) misaligned(past, alignment, call, site);
  }
  // A lane, or a distance between two: of other numbers the device takes some bits.
  static int in_warp(int value, const char* call, Site site) {
    if (value < 0 || value >= kWarp) out_of_range(value, kWarp - 1, call, site);
    return value;
  }

  template <class T>
  T exchange(T value, int from, const char* call, Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    std::uint32_t words[2];
    std::memcpy(words, &value, sizeof(T));
    const Warp::Brought& all = enter()->exchange(thread_, words, sizeof(T) / 4, call, site);
    std::memcpy(&value, all[static_cast<std::size_t>(from)].data(), sizeof(T));
    return value;
  }
  // Each lane brings the 8 elements of its row.
  template <class T>
  const Warp::Brought& exchange_row(Shared<T> row, const char* call, Site site) {
    static_assert(sizeof(T) == 2);
    const int at = row.piece(16, 16, call, site);
    check_read(at, 16, site);
    std::uint32_t words[4];
    std::memcpy(words, memory().data() + at, 16);
    return enter()->exchange(thread_, words, 4, call, site);
  }
  void send(Cta* to, int offset, const void* data, int from, int bytes, Remote<MBarrier> barrier, Site site) {
    if (barrier.cta_ != to)
      throw KernelError("the store at " + site.text() + " counts at another CTA's mbarrier");
    const int barrier_offset = barrier.local_.piece(8, 8, "a store's mbarrier", site);
    enter()->send(thread_, *to, offset, data, from, bytes, barrier_offset, site);
  }

  Machine& machine_;
  Thread& thread_;
};

}  // namespace fastrnn::cuda::emulated
