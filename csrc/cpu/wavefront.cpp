#include "cpu/wavefront.h"

#include <algorithm>
#include <new>

namespace fastrnn::cpu {

Wavefront::Wavefront(Arena& arena, Index layers, const LayerSplit& split, Index steps, bool in_turn)
    : count_(layers),
      steps_(steps),
      split_(split),
      in_turn_(in_turn),
      layers_(arena.take<Progress>(layers)),
      groups_(arena.take<Group>(split.groups)) {
  if (!layers_) return;
  for (Index i = 0; i < layers; ++i) new (layers_ + i) Progress(changed_);
  for (int i = 0; i < split.groups; ++i) new (groups_ + i) Group(split.within.threads);
}

// What a layer may do next: less than a task where the layer below has come to the end of a block of steps,
// and takes its time for the gradients of its weights.
Range Wavefront::next(Index position) const {
  const Index first = layers_[position].steps();
  Index last = std::min(first + split_.steps, steps_);
  if (position > 0) last = std::min(last, layers_[position - 1].steps());
  if (in_turn_ && position > 1) {
    const Index read = layers_[position - 2].steps();
    if (read < steps_) last = std::min(last, read - 1);
  }
  return {first, last};
}

Wavefront::Task Wavefront::take(Index before) {
  for (;;) {
    const std::uint32_t seen = changed_.count();  // before what it counts
    if (stopped_.load(std::memory_order_relaxed)) return {};
    bool all_done = true;
    Index best = -1, best_place = 0;
    for (Index i = 0; i < count_; ++i) {
      const Range steps = next(i);
      if (steps.first == steps_) continue;
      all_done = false;
      if (layers_[i].taken_.load(std::memory_order_relaxed) || steps.first >= steps.last) continue;
      const Index place = steps.first + i * split_.steps;
      if (best >= 0 && (place > best_place || (place == best_place && i != before))) continue;
      best = i;
      best_place = place;
    }
    if (all_done) return {};
    if (best < 0) {
      changed_.wait_past(seen);
    } else if (!layers_[best].taken_.exchange(true, std::memory_order_acquire)) {
      // Another group may have had it meanwhile, and have brought it further than what it reads.
      const Range steps = next(best);
      if (steps.first < steps.last) return {best, steps};
      give_back(best);
    }
  }
}

void Wavefront::give_back(Index position) {
  layers_[position].taken_.store(false, std::memory_order_release);
  changed_.signal();
}

}  // namespace fastrnn::cpu
