// Which rows of the batch take part in which step, and who works on what.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/types.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fastrnn::cpu {

// Steps are counted in processing order: step s of a row is time s forward, length - 1 - s in reverse, so
// that the reverse direction starts at each row's own end.  Rows are sorted by falling length: those active
// at a step are then the first active(s), in both directions.
class Schedule {
 public:
  // lengths may be null: every row has T steps.
  void set(Index T, Index B, const Index* lengths) {
    row_.resize(static_cast<std::size_t>(B));
    length_.resize(static_cast<std::size_t>(B));
    std::iota(row_.begin(), row_.end(), Index{0});
    if (lengths)
      std::stable_sort(row_.begin(), row_.end(), [&](Index a, Index b) { return lengths[a] > lengths[b]; });
    for (std::size_t j = 0; j < row_.size(); ++j) length_[j] = lengths ? lengths[row_[j]] : T;
    steps_ = B > 0 ? length_[0] : 0;
    active_.resize(static_cast<std::size_t>(steps_));
    Index active = B;
    for (Index step = 0; step < steps_; ++step) {
      while (length(active - 1) <= step) --active;  // the longest row stays
      active_[static_cast<std::size_t>(step)] = active;
    }
  }

  Index batch() const { return static_cast<Index>(row_.size()); }
  Index steps() const { return steps_; }  // of the longest row
  Index row(Index j) const { return row_[static_cast<std::size_t>(j)]; }
  Index length(Index j) const { return length_[static_cast<std::size_t>(j)]; }
  Index active(Index step) const { return active_[static_cast<std::size_t>(step)]; }
  Index time(Index step, Index j, bool reverse) const { return reverse ? length(j) - 1 - step : step; }

 private:
  std::vector<Index> row_, length_, active_;
  Index steps_ = 0;
};

// How a team divides one direction of one layer.  Rows are independent for the whole sequence, so dividing
// rows needs no waiting; dividing units needs a barrier where a step reads what another thread wrote.
struct Split {
  int threads = 1;
  bool by_units = false;
  const char* reason = "one thread";
};
// In what follows a layer that reads tokens has an input of 0: for each a column of W_ih is added.
// Is a call long enough to wake other threads for?
bool worth_threads(const LayerShape& shape, Index steps, Index batch);
Split choose_split(const LayerShape& shape, Index steps, Index batch, int lanes, int tile_rows, int threads);

// How a team divides a stack by layers: groups of threads, each on a layer of its own, `steps` of it at a
// time.
struct LayerSplit {
  int groups = 1;  // 1: layers run one after the other
  Index steps = 0;
  Split within;  // of a layer, among the threads of its group
};
// Of a stack with one direction; the layers above the first are alike.
LayerSplit choose_layer_split(const LayerShape& first, const LayerShape& above, Index layers, Index steps,
                              Index batch, int lanes, int tile_rows, int weight_bytes, int threads);

// One thread's share.
struct Share {
  int tid = 0;
  int threads = 1;
  bool by_units = false;
  SpinBarrier* barrier = nullptr;  // of all `threads`; null for one

  // This thread's sorted rows: all of them, or dealt out in turn, so that ragged rows are balanced.
  Index nth_row(Index i) const { return by_units ? i : tid + i * threads; }
  Index rows_of(Index active) const {
    if (by_units) return active;
    return active > tid ? (active - tid - 1) / threads + 1 : 0;
  }
  Range panels(Index units, int lanes) const {
    const Index total = (units + lanes - 1) / lanes;
    return by_units ? slice(total) : Range{0, total};
  }
  // The units in them.
  Range units(Index total, int lanes) const {
    const Range mine = panels(total, lanes);
    return {std::min(total, mine.first * lanes), std::min(total, mine.last * lanes)};
  }
  // An even part of anything that is divided whatever the split.
  Range slice(Index total, Index multiple = 1) const {
    const Index groups = (total + multiple - 1) / multiple;
    return {std::min(total, groups * tid / threads * multiple),
            std::min(total, groups * (tid + 1) / threads * multiple)};
  }
  void wait_all() const {
    if (barrier) barrier->wait();
  }
  // Between the phases of a step.
  void wait_units() const {
    if (by_units) wait_all();
  }
};

}  // namespace fastrnn::cpu
