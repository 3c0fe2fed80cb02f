#include "cpu/schedule.h"

namespace fastrnn::cpu {
namespace {

// Below this many floating-point operations a call is over before a second thread has woken up.
constexpr double kWorthThreads = 2e6;
// Operations of one step per thread that a barrier (about a microsecond) may be added to.
constexpr double kWorthBarrier = 2e5;

}  // namespace

Split choose_split(const LayerShape& shape, Index steps, Index batch, int lanes, int tile_rows, int threads) {
  if (threads <= 1) return {1, false, "one thread is allowed"};
  const double recurrent =
      2.0 * static_cast<double>(shape.gate_rows()) * static_cast<double>(shape.recurrent());
  const double input = 2.0 * static_cast<double>(shape.gate_rows()) * static_cast<double>(shape.input);
  const double rows = static_cast<double>(batch);
  if (static_cast<double>(steps) * rows * (recurrent + input) < kWorthThreads)
    return {1, false, "too little work to share"};
  if (batch >= Index{threads} * tile_rows)
    return {threads, false, "rows of the batch: enough for a full tile each"};
  const Index panels = (shape.hidden + lanes - 1) / lanes;
  const int by_units = static_cast<int>(std::min<Index>(threads, panels));
  if (by_units > 1 && rows * recurrent / by_units >= kWorthBarrier) {
    return {by_units, true, "hidden units: too few rows, a step is worth a barrier"};
  }
  const int by_rows = static_cast<int>(std::min<Index>(threads, batch));
  if (by_rows > 1) return {by_rows, false, "rows of the batch: a step is too short for a barrier"};
  return {1, false, "one row, and a step too short for a barrier"};
}

}  // namespace fastrnn::cpu
