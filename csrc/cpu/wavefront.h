// Layers side by side: each goes through its steps some way behind the layer whose output it reads, so that
// they need no barrier per step.
#pragma once

#include <atomic>

#include "core/buffers.h"
#include "cpu/parallel.h"
#include "cpu/schedule.h"

namespace fastrnn::cpu {

// How many steps of a layer others may read: in the order in which the layer goes through them.
class Progress {
 public:
  explicit Progress(detail::Event& changed) : changed_(changed) {}
  Index steps() const { return steps_.load(std::memory_order_acquire); }
  void reach(Index steps) {
    steps_.store(steps, std::memory_order_release);
    changed_.signal();
  }

 private:
  friend class Wavefront;
  alignas(detail::cache_line) std::atomic<Index> steps_{0};
  std::atomic<bool> taken_{false};  // by a group that works on it
  detail::Event& changed_;
};

// Work is cut into tasks of one layer and some steps. Groups of threads take them as they come to be ready,
// the ones furthest behind first, so that any number of layers keeps any number of groups busy; at ties a
// group stays with its layer, so that with a group for each layer the weights stay in its cache.
class Wavefront {
 public:
  // `position` 0 is the layer that begins. `in_turn`: the layers write in turn to two arrays, so that one
  // must not write where the layer two before it has still to read back its last step.
  Wavefront(Arena& arena, Index layers, const LayerSplit& split, Index steps, bool in_turn);

  Progress* progress(Index position) { return layers_ ? layers_ + position : nullptr; }

  // For every thread of the team: calls run(position, steps, share) until nothing is left; run() has to raise
  // the layer's progress. What run() throws ends all groups' work, if groups have one thread.
  template <class Run>
  void work(int tid, Run run) {
    const int threads = split_.within.threads, number = tid / threads;
    if (number >= split_.groups) return;
    Group& group = groups_[number];
    const Share share{tid % threads, threads, split_.within.by_units, threads > 1 ? &group.barrier : nullptr};
    Index before = -1;
    for (;;) {
      if (share.tid == 0) group.task = take(before);
      share.wait_all();
      const Task mine = group.task;
      if (mine.steps.first == mine.steps.last) return;
      try {
        run(mine.position, mine.steps, share);
      } catch (...) {
        stopped_.store(true, std::memory_order_relaxed);
        changed_.signal();
        throw;
      }
      share.wait_all();
      if (share.tid == 0) give_back(mine.position);
      before = mine.position;
    }
  }

 private:
  struct Task {
    Index position = 0;
    Range steps;  // empty: nothing is left
  };
  struct Group {
    explicit Group(int threads) : barrier(threads) {}
    SpinBarrier barrier;
    Task task;  // what all its threads work on
  };

  Task take(Index before);  // waits until there is one
  void give_back(Index position);
  Range next(Index position) const;  // empty: not yet, or nothing is left

  const Index count_, steps_;
  const LayerSplit split_;
  const bool in_turn_;
  Progress* layers_;
  Group* groups_;
  detail::Event changed_;
  std::atomic<bool> stopped_{false};
};

}  // namespace fastrnn::cpu
