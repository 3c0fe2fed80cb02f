#include "cpu/schedule.h"

namespace fastrnn::cpu {
namespace {

// Below this many floating-point operations a call is over before a second thread has woken up.
constexpr double kWorthThreads = 2e6;
// Operations of one step per thread that a barrier may be added to.  A GRU and an Elman network of H = 256
// with one row (2e5 and 7e4 of them) run 1.5 to 1.7 times as fast on two threads; from 3e4 on the barrier
// costs more than dividing rows does.
constexpr double kWorthBarrier = 5e4;
// Layers go side by side while the weights of one stay in a core's L2.  Two layers on two threads are
// then 1.6 to 1.95 times as fast as on one, dividing rows 1.4 to 1.95, units 1.7, and few rows with short
// steps 1.0; with larger weights units, of which each core keeps its part, reach 1.8 to 2.2, layers 1.5
// to 1.9.
constexpr Index kNearBytes = 1024 * 1024;
// Tasks for each group of threads and each other one: waiting at the beginning and the end is then 3 % of
// the time.
constexpr Index kTasks = 32;
// Layers must be as busy as this times what rows or units would be: below, at T = 20, two layers were 4 %
// and three 8 % slower side by side.  And busy enough to wake a thread for.
constexpr double kAlone = 0.96, kLeastBusy = 1.3;

// Multiply-adds of one row in one step.
double multiply_adds(const LayerShape& shape) {
  return static_cast<double>(shape.gate_rows()) * static_cast<double>(shape.input + shape.recurrent());
}

bool worth_threads(double multiply_adds, Index steps, Index batch) {
  return 2 * multiply_adds * static_cast<double>(steps) * static_cast<double>(batch) >= kWorthThreads;
}

// How many threads' work a layer gets: where rows are dealt out, some have one more than others.
double busy_threads(const Split& split, Index batch) {
  if (split.by_units) return split.threads;
  return static_cast<double>(batch) / static_cast<double>((batch + split.threads - 1) / split.threads);
}

}  // namespace

bool worth_threads(const LayerShape& shape, Index steps, Index batch) {
  return worth_threads(multiply_adds(shape), steps, batch);
}

Split choose_split(const LayerShape& shape, Index steps, Index batch, int lanes, int tile_rows, int threads) {
  if (threads <= 1) return {1, false, "one thread is allowed"};
  if (!worth_threads(shape, steps, batch)) return {1, false, "too little work to share"};
  const double recurrent =
      2.0 * static_cast<double>(shape.gate_rows()) * static_cast<double>(shape.recurrent());
  const double rows = static_cast<double>(batch);
  if (batch >= Index{threads} * tile_rows)
    return {threads, false, "rows of the batch: enough for a full tile each"};
  // As many threads as there are panels, and as a step is worth barriers: never fewer where more are allowed.
  const auto panels = static_cast<double>((shape.hidden + lanes - 1) / lanes);
  const int by_units =
      static_cast<int>(std::min({static_cast<double>(threads), panels, rows * recurrent / kWorthBarrier}));
  const int by_rows = static_cast<int>(std::min<Index>(threads, batch));
  if (by_units > 1 && by_units >= by_rows)
    return {by_units, true, "hidden units: too few rows, a step is worth a barrier"};
  if (by_rows > 1) return {by_rows, false, "rows of the batch: a step is too short for a barrier"};
  return {1, false, "one row, and a step too short for a barrier"};
}

LayerSplit choose_layer_split(const LayerShape& first, const LayerShape& above, Index layers, Index steps,
                              Index batch, int lanes, int tile_rows, int weight_bytes, int threads) {
  if (layers < 2 || threads < 2) return {};
  const double lowest = multiply_adds(first), other = multiply_adds(above);
  const double all = lowest + static_cast<double>(layers - 1) * other, largest = std::max(lowest, other);
  if (!worth_threads(all, steps, batch) || largest * weight_bytes > kNearBytes) return {};
  LayerSplit split;
  split.groups = static_cast<int>(std::min<Index>(threads, layers));
  // A task has the rows of a tile, for the products of x.
  split.steps = std::max((tile_rows + batch - 1) / batch,
                         steps * layers / (kTasks * split.groups * (split.groups - 1)));
  if (threads / split.groups > 1)
    split.within = choose_split(above, steps, batch, lanes, tile_rows, threads / split.groups);
  // It takes as long as the largest layer and one task of each other one, and as all tasks dealt out, where
  // at the beginning all groups but one wait for the layers below, and at the end have nothing left to do.
  const double tasks = static_cast<double>((steps + split.steps - 1) / split.steps);
  const double path = tasks * largest + all - largest;
  const double dealt = tasks * all / split.groups + (split.groups - 1) * all / static_cast<double>(layers);
  const double busy = tasks * all / std::max(path, dealt) * busy_threads(split.within, batch);
  const Split alone = choose_split(above, steps, batch, lanes, tile_rows, threads);
  return busy >= std::max(kAlone * busy_threads(alone, batch), kLeastBusy) ? split : LayerSplit();
}

}  // namespace fastrnn::cpu
