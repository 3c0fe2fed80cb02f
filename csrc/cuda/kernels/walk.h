// Which rows take part in which step, and where: the device's counterpart of cpu/schedule.h.
//
// Steps are counted in processing order: step s of row b is time s, or length - 1 - s in reverse. Rows are
// not sorted: a row whose length is up is inactive, its state is left alone, and at step s it stands for the
// padded time s, so that every (t, b) is met exactly once in either direction.
#pragma once

#include "cuda/context.h"

namespace fastrnn::cuda {

// Numbers that lie on the device are not checked, but clamped: whatever they are, nothing outside of an array
// is touched.
FRNN_HOST_DEVICE Index clamp(Index i, Index least, Index most) {
  return i < least ? least : i < most ? i : most;
}

struct Walk {
  const Index* lengths = nullptr;       // [B], or null: every row has T steps
  const std::uint8_t* reset = nullptr;  // [T,B], true where not 0, or null
  Index steps = 0;                      // T
  Index batch = 0;                      // B
  bool reverse = false;

  FRNN_HOST_DEVICE Index length(Index b) const { return lengths ? clamp(lengths[b], 0, steps) : steps; }
};

// Row b of a batch is row at(b) of the state arrays.
struct StateRows {
  const Index* rows = nullptr;  // [B], distinct; null: the same
  Index count = 0;              // of the state arrays

  FRNN_HOST_DEVICE Index at(Index b) const { return rows ? clamp(rows[b], 0, count - 1) : b; }
};

// One row at one step.
struct RowAt {
  const Walk& walk;
  Index b, step, length;

  FRNN_HOST_DEVICE RowAt(const Walk& w, Index row, Index at_step) : RowAt(w, row, at_step, w.length(row)) {}
  // With the row's length where that is at hand.
  FRNN_HOST_DEVICE RowAt(const Walk& w, Index row, Index at_step, Index row_length)
      : walk(w), b(row), step(at_step), length(row_length) {}

  FRNN_HOST_DEVICE bool active() const { return step < length; }
  FRNN_HOST_DEVICE bool ends() const { return step + 1 == length; }
  FRNN_HOST_DEVICE Index time() const { return walk.reverse && active() ? length - 1 - step : step; }
  FRNN_HOST_DEVICE Index previous_time() const { return walk.reverse ? time() + 1 : time() - 1; }
  FRNN_HOST_DEVICE Index index() const { return time() * walk.batch + b; }  // of (t, b)
  FRNN_HOST_DEVICE Index previous_index() const { return previous_time() * walk.batch + b; }

  // Is there a boundary between this step, an active one, and the step before it? A reset at t stands before
  // time t: the forward direction meets it on entering t, the reverse direction on entering t - 1.
  FRNN_HOST_DEVICE bool starts_piece() const {
    if (!walk.reset) return false;
    if (walk.reverse) return step > 0 && walk.reset[previous_index()] != 0;
    return walk.reset[index()] != 0;
  }
  // Does what leaves this step, an active one, enter the next?
  FRNN_HOST_DEVICE bool goes_on() const {
    RowAt next = *this;
    ++next.step;
    return !ends() && !next.starts_piece();
  }
};

}  // namespace fastrnn::cuda
