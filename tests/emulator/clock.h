// Vector clocks: what has happened before what.  With them a race is found in every schedule, not only in
// those where it does harm.
//
// Each thread counts its epochs: one ends whenever the thread lets others know what it has done so far (a
// barrier, an arrival at an mbarrier, a store to another CTA).  A Clock holds, for each thread, the last
// epoch that is known to have ended.  An access in epoch e of thread i has happened before what thread j does
// now if j's clock knows of i's epoch e.  Two accesses to the same place, at least one of them a store, race
// if neither happened before the other.
//
// Bytes that a st_async or bulk_copy stores are not ordered by their sender's epochs but by the mbarrier that
// counts them, so each mbarrier is one more index of the clock; its epochs are its phases.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastrnn::cuda::emulated {

// Immutable once shared: threads that have met hold the same one.
class Clock {
 public:
  std::uint32_t operator[](int i) const {
    const auto at = static_cast<std::size_t>(i);
    return epochs_ && at < epochs_->size() ? (*epochs_)[at] : 0;
  }
  // Knows of everything that `other` knows of.
  void join(const Clock& other) {
    if (!other.epochs_ || other.epochs_ == epochs_) return;
    if (!epochs_) {
      epochs_ = other.epochs_;
      return;
    }
    Epochs& mine = own(other.epochs_->size());
    for (std::size_t i = 0; i < other.epochs_->size(); ++i) mine[i] = std::max(mine[i], (*other.epochs_)[i]);
  }
  void set(int i, std::uint32_t epoch) {
    const auto at = static_cast<std::size_t>(i);
    Epochs& mine = own(at + 1);
    mine[at] = std::max(mine[at], epoch);
  }
  bool same_as(const Clock& other) const { return epochs_ == other.epochs_; }

 private:
  using Epochs = std::vector<std::uint32_t>;
  // A copy that nobody else holds, of at least this size.
  Epochs& own(std::size_t size) {
    if (!epochs_) {
      epochs_ = std::make_shared<Epochs>(size);
    } else if (epochs_.use_count() > 1) {
      epochs_ = std::make_shared<Epochs>(*epochs_);
    }
    if (epochs_->size() < size) epochs_->resize(size);
    return *epochs_;
  }
  std::shared_ptr<Epochs> epochs_;
};

// Who does something, and what it knows of: a thread now, or a store that it sent some time ago.
struct Agent {
  int id = 0;               // index in clocks
  std::uint32_t epoch = 1;  // the current one
  Clock clock;

  bool knows(int other, std::uint32_t when) const {
    return other == id ? when <= epoch : when <= clock[other];
  }
  // Lets whoever joins `to` know of all that it has done.
  void release(Clock& to) {
    to.join(clock);
    to.set(id, epoch);
    ++epoch;
  }
};

}  // namespace fastrnn::cuda::emulated
