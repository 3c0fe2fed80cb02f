// Back-propagation through time (Werbos 1990).  Per block of steps, last block first: step by step the
// gradient of the pre-activations, dG, in one pass over the transposed recurrent weights; then, all at once,
// what those rows add to the weights' gradients and to dx.
//
// Order of sums: a weight's gradient is one chain over the rows of dG, last step first, rows of a step by
// falling length; so it depends neither on the size of a block nor on the number of threads.
#include <algorithm>
#include <cstring>

#include "cpu/noise.h"
#include "cpu/sequence.h"

namespace fastrnn::cpu {
namespace {

// Rows of dG that are multiplied together. Where a weight's gradient stays in the second cache, few enough
// that dG does too (with 512, 2 % more for a training step at H = 256). Elsewhere each block brings all of
// the gradient from afar: enough rows that this costs little beside the product (with 128, 5 to 8 % more at H
// = 512), few enough that dG stays in the last cache (with 1024, 10 % more at H = 1024).
constexpr Index kNearBlockRows = 128, kBlockRows = 512;
constexpr Index kNearGradient = 256 * 1024;  // weights: 1 MiB of floats

// One thread's lists of rows: a block's in the order of dG, a step's, and a weight gradient's.
template <class T>
struct Lists {
  const T **x, **h_prev, **h_read, **c_prev, **c, **gates, **in;  // h_read: h_prev as products read it
  std::int64_t* tokens;
  T **out, **dx, **gates_again, **c_again, **h_again;
  const T **dg_next, **dg_now, **dy, **extra, **dc_next, **candidate, **projected_read, **step_gates,
      **step_h_prev, **step_h_read, **step_c, **step_c_prev;
  T **dg, **dc, **new_dc, **carry, **direct, **incoming, **projected;
  T* mask;  // of one row
  const T** columns;
  Index bytes;

  Lists(Arena arena, Index rows, Index B, Index gradient_rows, Index units) {
    for (const T*** list : {&x, &h_prev, &h_read, &c_prev, &c, &gates, &in})
      *list = arena.take<const T*>(rows);
    tokens = arena.take<std::int64_t>(rows);
    for (T*** list : {&out, &dx, &gates_again, &c_again, &h_again}) *list = arena.take<T*>(rows);
    for (const T*** list : {&dg_next, &dg_now, &dy, &extra, &dc_next, &candidate, &projected_read,
                            &step_gates, &step_h_prev, &step_h_read, &step_c, &step_c_prev})
      *list = arena.take<const T*>(B);
    for (T*** list : {&dg, &dc, &new_dc, &carry, &direct, &incoming, &projected}) *list = arena.take<T*>(B);
    mask = arena.take<T>(units);
    columns = arena.take<const T*>(gradient_rows);
    bytes = static_cast<Index>(arena.used());
  }
};

template <class T>
Lists<T> lists_of(const BackwardCall<T>& call, Arena arena) {
  return Lists<T>(arena, call.block * call.batch, call.batch, call.shape.gradient_columns(),
                  std::max(call.noise ? call.shape.hidden : 0, call.dropout ? call.shape.input : 0));
}

// One thread's way through the sequence.
template <class T>
class Walk {
 public:
  Walk(const BackwardCall<T>& call, const Share& share)
      : call_(call),
        share_(share),
        shape_(call.shape),
        schedule_(*call.schedule),
        kernels_(*call.kernels),
        weights_(*call.weights),
        list_(lists_of(call, Arena(call.lists + call.list_bytes * share.tid))),
        H_(call.shape.hidden),
        R_(call.shape.recurrent()),
        own_(share.units(H_, kernels_.lanes)),
        own_h_(share.units(R_, kernels_.lanes)),
        stride_(call.dg_stride),
        full_(call.shape.peephole == Peephole::full),
        reset_after_(call.shape.cell == Cell::gru && call.shape.reset_after),
        reset_before_(call.shape.cell == Cell::gru && !call.shape.reset_after),
        drops_h_(call.noise && call.noise->drops_h),
        zones_h_(call.noise && call.noise->zones_h),
        zones_c_(call.noise && call.noise->zones_c),
        apart_(drops_h_ || zones_h_),
        carries_(call.shape.cell == Cell::gru || zones_h_),
        h_read_(drops_h_ ? list_.h_read : list_.h_prev) {}

  // A call finds what the one before it has left in the call's memory: the lists of the block that they are
  // in, its dG, and the gates of the segment.
  void run(Range steps) {
    const Index all = schedule_.steps(), until = all - steps.last;
    if (drops_h_ && steps.first == 0) draw_scales();
    for (Index last = all - steps.first, stop = last; last > until; last = stop) {
      const Range segment = segment_of(last);  // without them there is one
      // Of call_.block steps from the segment's end, but for the last one.
      const Index end = segment.last - (segment.last - last) / call_.block * call_.block;
      const Index first = std::max<Index>(end - call_.block, segment.first);
      if (last == segment.last && call_.segment) recompute_gates(segment.first, segment.last);
      if (last == end) {
        list_block(first, end);
        recompute();
      } else {
        rows_ = rows_from(first, end);
      }
      stop = std::max(first, until);
      const Index before = rows_from(last, end);
      Index row = before;
      for (Index step = last; step-- > stop; row += schedule_.active(step)) step_backward(step, end, row);
      if (!share_.by_units) share_.wait_all();  // by units, the last step has ended with one
      input_gradient(stop, last, {before, row});
      call_.reach(all - stop, share_);
      if (stop > first) continue;
      rows_with_h_ = first == 0 && !call_.h0 ? rows_ - schedule_.active(0) : rows_;
      pack_block();
      weight_gradients();
      keep_step(first);
      share_.wait_all();
    }
    if (until == 0) initial_state();
  }

 private:
  const T* previous_hidden(Index step, Index j) const {
    const Index t = schedule_.time(step, j, call_.reverse), b = schedule_.row(j);
    if (call_.starts_piece(step, j)) return call_.zeros;
    if (step > 0) return call_.y.at(call_.reverse ? t + 1 : t - 1, b);
    return call_.h0 ? call_.h0 + b * R_ : call_.zeros;
  }
  const T* previous_cell(Index step, Index j) const {
    const Index t = schedule_.time(step, j, call_.reverse), b = schedule_.row(j);
    if (call_.starts_piece(step, j)) return call_.zeros;
    if (step > 0) {
      if (const T* kept = call_.kept_cell(step - 1, b)) return kept;
      return cell(step - 1, call_.reverse ? t + 1 : t - 1, b);
    }
    return call_.c0 ? call_.c0 + b * H_ : call_.zeros;
  }

  // Recurrent dropout's factors of row j; null without.
  const T* scale(Index j) const { return call_.scale ? call_.scale + j * R_ : nullptr; }
  void draw_scales() {
    for (Index j = share_.tid; j < schedule_.batch(); j += share_.threads)
      draw_scale<T>(kernels_, call_.noise->recurrent, 0, schedule_.row(j), call_.direction(), {0, R_},
                    call_.scale + j * R_);
    share_.wait_all();
  }

  // What zoneout keeps of row j at a step, in the units given.
  const T* keep(const Zoneout& zoneout, Index step, Index j, Range units) const {
    draw_keep<T>(kernels_, zoneout, schedule_.time(step, j, call_.reverse), schedule_.row(j),
                 call_.direction(), units, list_.mask);
    return list_.mask;
  }

  // The segment that the step before `last` is in.
  Range segment_of(Index last) const {
    if (!call_.segment) return {0, schedule_.steps()};
    const Index begin = (last - 1) / call_.segment * call_.segment;
    return {begin, std::min(begin + call_.segment, schedule_.steps())};
  }
  Index rows_from(Index first, Index last) const {
    Index rows = 0;
    for (Index step = first; step < last; ++step) rows += schedule_.active(step);
    return rows;
  }

  T* gates(Index step, Index t, Index b) const {
    return call_.gates + call_.saved_at(step, t, b) * shape_.reserved_gates() * H_;
  }
  T* cell(Index step, Index t, Index b) const { return call_.cells + call_.saved_at(step, t, b) * H_; }

  // Gates and c of the steps [begin, end), to the bit as forward computed them.  y has every h, so that the
  // rows of a block of steps are one call of a kernel, by which each panel meets them in order; only a full
  // peephole, where each unit needs all of c, and zoneout of c go step by step.
  void recompute_gates(Index begin, Index end) {
    for (Index first = begin, last; first < end; first = last) {
      last = std::min(first + call_.block, end);
      const Index rows = list_again(first, last);
      if (call_.dropout || drops_h_) share_.wait_units();
      const bool fused = fuses_input(shape_, rows, call_.tokens, kernels_);
      if (!fused) input_again(rows);
      if (full_ || zones_c_) {
        for (Index step = first, row = 0; step < last; ++step) {
          const Index active = share_.rows_of(schedule_.active(step));
          gates_again(row, active, fused);
          if (zones_c_) zone_out_cells_again(step, row, active);
          row += active;
        }
      } else {
        gates_again(0, rows, fused);
      }
      share_.wait_units();  // before another thread drops from the next block's x
    }
    share_.wait_all();
  }

  // This thread's rows of the steps [first, last), first step first; returns how many.
  Index list_again(Index first, Index last) {
    Index rows = 0;
    for (Index step = first; step < last; ++step) {
      const Index active = share_.rows_of(schedule_.active(step));
      for (Index i = 0; i < active; ++i, ++rows) {
        const Index j = share_.nth_row(i);
        const Index t = schedule_.time(step, j, call_.reverse), b = schedule_.row(j);
        const Index place = (step - first) * call_.batch + j;  // in what all threads share
        const bool mine = !share_.by_units || rows % share_.threads == share_.tid;
        list_input(rows, t, b, place, mine);
        list_hidden(rows, step, j, place, mine);
        list_.gates_again[rows] = gates(step, t, b);
        list_.h_again[rows] = call_.unused_h + share_.tid * H_;
        if (reset_before_) list_.out[rows] = call_.candidate + place * H_;
        if (shape_.cell == Cell::lstm) {
          list_.c_prev[rows] = previous_cell(step, j);
          list_.c_again[rows] = cell(step, t, b);
        }
      }
    }
    return rows;
  }

  // c of the listed rows of one step, from `row` on.
  void zone_out_cells_again(Index step, Index row, Index rows) {
    if (full_) share_.wait_units();  // all reads of the new c
    for (Index i = 0; i < rows; ++i)
      zone_out(keep(call_.noise->c, step, share_.nth_row(i), own_), list_.c_prev[row + i], own_,
               list_.c_again[row + i]);
    if (full_) share_.wait_units();
  }

  // W_ih x + b of the listed rows, where their gates will stand.
  void input_again(Index rows) {
    const PackedLayer<T>& weights = *call_.forward_weights;
    input_product<T>(kernels_, weights, shape_, share_.panels(H_, kernels_.lanes), rows,
                     {list_.x, 1, weights.input, shape_.input}, call_.tokens ? list_.tokens : nullptr,
                     list_.gates_again);
  }

  // Of the listed rows from `row` on.
  void gates_again(Index row, Index rows, bool fused) {
    const PackedLayer<T>& weights = *call_.forward_weights;
    StepForward<T> args;
    args.units = H_;
    args.rows = rows;
    args.panels = share_.panels(H_, kernels_.lanes);
    args.recurrent = {h_read_ + row, 1, weights.recurrent, R_};
    if (fused) {
      args.bias = weights.bias;
      if (call_.tokens) {
        args.tokens = list_.tokens + row;
        args.columns = weights.input;
        args.vocabulary = shape_.input;
      } else {
        args.input = {list_.x + row, 1, weights.input, shape_.input};
      }
    } else {
      args.pre = list_.gates_again + row;
    }
    args.gates = list_.gates_again + row;
    args.h_prev = list_.h_prev + row;
    args.h = list_.h_again + row;
    args.reset_h = list_.out + row;
    if (shape_.cell == Cell::lstm) {
      args.c_prev = list_.c_prev + row;
      args.c = list_.c_again + row;
    }
    forward_cell<T>(kernels_, weights, shape_, share_, args, h_read_ + row,
                    [&](const T* const* inner, const T* panels) { return Operand<T>{inner, 1, panels, H_}; });
  }

  // A row's x, or its token; with dropout its `place` among the block's masked rows, masked here if `mine`.
  void list_input(Index row, Index t, Index b, Index place, bool mine) {
    if (call_.tokens) {
      list_.tokens[row] = call_.tokens[t * call_.batch + b];
    } else if (call_.dropout) {
      T* dropped = call_.dropped + place * shape_.input;
      if (mine) drop<T>(kernels_, *call_.dropout, t, b, shape_.input, call_.x.at(t, b), dropped, dropped);
      list_.x[row] = dropped;
    } else {
      list_.x[row] = call_.x.at(t, b);
    }
  }

  // The h that enters a step, and what its products read of it: with recurrent dropout at its `place` among
  // the block's, masked here if `mine`.
  void list_hidden(Index row, Index step, Index j, Index place, bool mine) {
    list_.h_prev[row] = previous_hidden(step, j);
    if (!drops_h_) return;
    T* read = call_.h_read + place * R_;
    if (mine) multiply(scale(j), list_.h_prev[row], {0, R_}, read);
    list_.h_read[row] = read;
  }

  // The block's rows, last step first.
  void list_block(Index first, Index last) {
    rows_ = 0;
    for (Index step = last; step-- > first;) {
      for (Index j = 0; j < schedule_.active(step); ++j, ++rows_) {
        const Index t = schedule_.time(step, j, call_.reverse), b = schedule_.row(j);
        const bool mine = rows_ % share_.threads == share_.tid;
        list_input(rows_, t, b, rows_, mine);
        list_hidden(rows_, step, j, rows_, mine);
        // The Elman layer's only gate is its output: after zoneout, which is not what its nonlinearity gave
        // where a unit was kept (see step_backward).
        list_.gates[rows_] = call_.gates ? gates(step, t, b) : call_.y.at(t, b);
        if (shape_.cell == Cell::lstm) {
          list_.c_prev[rows_] = previous_cell(step, j);
          list_.c[rows_] = zones_c_ ? call_.new_cells + rows_ * H_ : cell(step, t, b);
        }
        if (call_.dx) list_.dx[rows_] = call_.dx.at(t, b);
      }
    }
  }

  // What forward computed and did not save, for all rows of the block.
  void recompute() {
    if (drops_h_) share_.wait_all();  // each thread has masked some of h
    const Range mine = share_.slice(rows_);
    for (Index row = mine.first; row < mine.last; ++row) {
      if (call_.candidate) list_.out[row] = call_.candidate + row * H_;
      if (call_.hidden) list_.out[row] = call_.hidden + row * H_;
      if (call_.new_cells) list_.c_again[row] = call_.new_cells + row * H_;
    }
    if (reset_after_) {  // q = W_hn h + b_hn: the same sums as in forward
      Product<T> product;
      product.operand = {h_read_ + mine.first, 1, weights_.candidate, H_};
      product.units = H_;
      product.rows = mine.last - mine.first;
      product.panels = {0, panel_count(H_, kernels_.lanes)};
      product.bias = shape_.bias ? call_.parameters.bias_hh + 2 * H_ : nullptr;
      product.out = list_.out + mine.first;
      kernels_.product(product);
    }
    StepForward<T> args;
    args.units = H_;
    args.rows = mine.last - mine.first;
    args.pre = list_.gates + mine.first;
    args.h_prev = h_read_ + mine.first;
    args.h = list_.out + mine.first;
    args.reset_h = list_.out + mine.first;
    if (reset_before_) kernels_.gru_reset_hidden(args);
    if (call_.new_cells) {
      args.c_prev = list_.c_prev + mine.first;
      args.c = list_.c_again + mine.first;
      kernels_.lstm_new_cell(args);
    }
    args.c_prev = list_.c + mine.first;
    if (shape_.projection) kernels_.lstm_hidden(args);
    if (call_.candidate || call_.hidden || call_.new_cells) share_.wait_all();
  }

  // `row`: where the step's rows begin in the block.
  void step_backward(Index step, Index last, Index row) {
    const Index active = share_.rows_of(schedule_.active(step));
    for (Index i = 0; i < active; ++i) {
      const Index j = share_.nth_row(i);
      const Index t = schedule_.time(step, j, call_.reverse), b = schedule_.row(j);
      const bool ends = step + 1 == schedule_.length(j);
      const bool cut = !ends && call_.starts_piece(step + 1, j);
      const bool goes_on = !ends && !cut;
      const T* following = step + 1 == last ? call_.dg_next + j * stride_
                                            : call_.dg + (row - schedule_.active(step + 1) + j) * stride_;
      list_.dg[i] = call_.dg + (row + j) * stride_;
      list_.dg_now[i] = list_.dg[i];
      list_.dg_next[i] = goes_on ? following : call_.zeros;
      list_.dy[i] = call_.dy ? call_.dy.at(t, b) : call_.zeros;
      list_.extra[i] = call_.zeros;
      if (ends && call_.dh_n) list_.extra[i] = call_.dh_n + b * R_;
      list_.step_gates[i] = list_.gates[row + j];
      if (shape_.cell == Cell::lstm) {
        list_.dc[i] = call_.dc + j * H_;
        list_.dc_next[i] = goes_on ? list_.dc[i] : ends && call_.dc_n ? call_.dc_n + b * H_ : call_.zeros;
        list_.step_c[i] = list_.c[row + j];
        list_.step_c_prev[i] = list_.c_prev[row + j];
        if (shape_.projection) list_.projected[i] = call_.projected + (row + j) * R_;
        if (zones_c_) list_.new_dc[i] = call_.new_dc + j * H_;
      }
      if (carries_) {
        list_.carry[i] = call_.carry + j * R_;
        if (goes_on) list_.extra[i] = list_.carry[i];
      }
      if (apart_) list_.incoming[i] = call_.incoming + j * R_;
      if (shape_.cell == Cell::gru) {
        if (apart_) list_.direct[i] = call_.direct + j * H_;
        list_.step_h_read[i] = h_read_[row + j];
        if (reset_after_) list_.candidate[i] = call_.candidate + (row + j) * H_;
        list_.step_h_prev[i] = list_.h_prev[row + j];
      }
    }

    StepBackward<T> args;
    args.units = H_;
    args.rows = active;
    args.panels = share_.panels(H_, kernels_.lanes);
    args.panels.backwards = step % 2 == 1;  // as in forward
    if (step + 1 < schedule_.steps())       // else every row ends here: nothing to multiply
      args.recurrent = {list_.dg_next, 1, weights_.recurrent, shape_.recurrent_gradient_columns()};
    args.dy = list_.dy;
    args.extra = list_.extra;
    args.gates = list_.step_gates;
    args.dg = list_.dg;
    if (apart_) incoming_apart(args, step, active);
    switch (shape_.cell) {
      case Cell::lstm:
        if (shape_.projection) project_backward(args, active);
        args.c = list_.step_c;
        args.c_prev = list_.step_c_prev;
        args.dc_next = list_.dc_next;
        args.dc = list_.dc;
        args.peephole = shape_.peephole == Peephole::diagonal ? call_.parameters.weight_ch : nullptr;
        if (full_) args.peephole_cell = {list_.dg_next, 1, weights_.peephole_cell, 2 * H_};
        if (zones_c_) zone_out_cells_backward(args, step, active);
        if (full_) {
          kernels_.lstm_backward_output(args);
          share_.wait_units();
          for (Index i = 0; i < active; ++i) list_.dg_now[i] += 3 * H_;
          args.peephole_output = {list_.dg_now, 1, weights_.peephole_output, H_};
          kernels_.lstm_backward_cell(args);
        } else {
          kernels_.lstm_backward(args);
        }
        if (zones_c_) {
          for (Index i = 0; i < active; ++i) add(call_.kept_dc + share_.nth_row(i) * H_, own_, list_.dc[i]);
        }
        break;
      case Cell::gru:
        args.h_prev = list_.step_h_prev;
        args.carry = apart_ ? list_.direct : list_.carry;
        if (reset_after_) {
          args.candidate = list_.candidate;
          kernels_.gru_backward(args);
        } else {
          kernels_.gru_backward_candidate(args);
          if (apart_) {
            add_direct(active, false);
            for (Index i = 0; i < active; ++i)  // to which the next kernel adds
              std::fill(list_.direct[i] + own_h_.first, list_.direct[i] + own_h_.last, T(0));
          }
          share_.wait_units();
          for (Index i = 0; i < active; ++i) list_.dg_now[i] += 2 * H_;
          args.recurrent = {list_.dg_now, 1, weights_.candidate, H_};
          args.h_prev = list_.step_h_read;
          kernels_.gru_backward_reset(args);
        }
        if (apart_) add_direct(active, reset_before_);
        break;
      case Cell::rnn:
        args.nonlinearity = shape_.nonlinearity;
        kernels_.elman_backward(args);
        // A kept unit has no part in the step.  Its y is not the nonlinearity's, and the slope there, which
        // may be infinite, means nothing.
        for (Index i = 0; i < active && zones_h_; ++i)
          clear_where_zero<T>(list_.incoming[i], own_h_, list_.dg[i]);
        break;
    }
    share_.wait_units();
  }

  // With recurrent dropout or zoneout of h, the gradient of h before zoneout, and in carry what the h before
  // it gets directly; the rest of the step then reads it instead of what `args` had.
  void incoming_apart(StepBackward<T>& args, Index step, Index active) {
    Product<T> product;
    product.operand = args.recurrent;
    product.units = R_;
    product.rows = active;
    product.panels = share_.panels(R_, kernels_.lanes);
    product.out = list_.incoming;
    kernels_.product(product);
    for (Index i = 0; i < active; ++i) {
      const Index j = share_.nth_row(i);
      T* dh = list_.incoming[i];
      if (drops_h_) multiply(scale(j), dh, own_h_, dh);
      add(list_.dy[i], own_h_, dh);
      add(list_.extra[i], own_h_, dh);
      if (zones_h_) {
        zone_out_backward(keep(call_.noise->h, step, j, own_h_), dh, own_h_, list_.carry[i], dh);
      } else if (carries_) {
        std::fill(list_.carry[i] + own_h_.first, list_.carry[i] + own_h_.last, T(0));
      }
      list_.dy[i] = dh;
      list_.extra[i] = call_.zeros;
    }
    args.recurrent = {};
  }

  // To carry, what a GRU's kernel has left of h's gradient, or (`masked`) of that of h under the mask.
  void add_direct(Index active, bool masked) {
    for (Index i = 0; i < active; ++i) {
      T* direct = list_.direct[i];
      if (masked && drops_h_) multiply(scale(share_.nth_row(i)), direct, own_h_, direct);
      add(direct, own_h_, list_.carry[i]);
    }
  }

  void add(const T* from, Range units, T* to) const {
    kernels_.add(to + units.first, from + units.first, units.last - units.first);
  }

  // The same for c: `args` then has the gradient of the new c by way of c alone; kept_dc what the c before it
  // gets directly.
  void zone_out_cells_backward(StepBackward<T>& args, Index step, Index active) {
    const T* const* dc = list_.dc_next;
    if (full_) {  // the following step's i and f read this c
      Product<T> product;
      product.operand = args.peephole_cell;
      product.units = H_;
      product.rows = active;
      product.panels = args.panels;
      product.add = list_.dc_next;
      product.out = list_.new_dc;
      kernels_.product(product);
      dc = list_.new_dc;
      args.peephole_cell = {};
    }
    for (Index i = 0; i < active; ++i) {
      const Index j = share_.nth_row(i);
      zone_out_backward(keep(call_.noise->c, step, j, own_), dc[i], own_, call_.kept_dc + j * H_,
                        list_.new_dc[i]);
      list_.dc_next[i] = list_.new_dc[i];
    }
  }

  // Gradient of the projected h; what is left of `args` then takes it through W_hr.
  void project_backward(StepBackward<T>& args, Index active) {
    Product<T> product;
    product.operand = args.recurrent;
    product.units = R_;
    product.rows = active;
    product.panels = share_.panels(R_, kernels_.lanes);
    product.add = list_.dy;
    product.add_more = list_.extra;
    product.out = list_.projected;
    kernels_.product(product);
    share_.wait_units();
    for (Index i = 0; i < active; ++i) {
      list_.dy[i] = list_.extra[i] = call_.zeros;
      list_.projected_read[i] = list_.projected[i];
    }
    args.recurrent = {list_.projected_read, 1, weights_.projection, R_};
  }

  // ---- what a block of dG adds to the gradients

  void pack(const T* const* rows, Index depth, Index units, T* panels) const {
    const Range mine = share_.slice(panel_count(units, kernels_.lanes));
    kernels_.pack_rows({rows, depth, units, mine, panels});
  }

  void pack_block() {
    if (!call_.tokens) pack(list_.x, rows_, shape_.input, call_.panels.x);
    pack(h_read_, rows_with_h_, R_, call_.panels.h_prev);
    if (call_.panels.inner) {  // r h, or the h before its projection
      const T* rows = call_.hidden ? call_.hidden : call_.candidate;
      for (Index row = 0; row < rows_; ++row) list_.in[row] = rows + row * H_;
      pack(list_.in, rows_, H_, call_.panels.inner);
    }
    if (full_) {
      pack(list_.c_prev, rows_, H_, call_.panels.c_prev);
      pack(list_.c, rows_, H_, call_.panels.c);
    }
    share_.wait_all();
  }

  // gradient[row] += sum over the block's first `depth` rows of a[first column + row] times the packed row;
  // rows of the gradient are dealt out in slices.
  void outer_product(const T* a, Index stride, Index count, const T* panels, Index depth, Index units,
                     T* gradient) {
    const Range mine = share_.slice(count, kernels_.rows_of_tile(1));
    for (Index row = mine.first; row < mine.last; ++row) list_.columns[row] = a + row;
    AddProduct<T> product;
    product.operand = {list_.columns + mine.first, stride, panels, depth};
    product.units = units;
    product.rows = mine.last - mine.first;
    product.panels = {0, panel_count(units, kernels_.lanes)};
    product.out = gradient + mine.first * units;
    product.stride = units;
    kernels_.add_product(product);
  }

  // sum[column] += sum over rows of a[column] (times b's row)
  void column_sum(const T* a, const T* const* b, Index count, T* sum) {
    const Range mine = share_.slice(count, kernels_.lanes);
    kernels_.column_sum({a, stride_, b, rows_, mine.first, mine.last, sum});
  }

  void weight_gradients() {
    const LayerGradients<T>& to = call_.gradients;
    const T* dg = call_.dg;
    const T* dg_input = dg + shape_.input_gradient_offset();
    const Index GH = shape_.gate_rows();
    if (call_.tokens) {
      const Range mine = share_.slice(GH, kernels_.lanes);
      for (Index row = 0; row < rows_; ++row) {
        T* gradient = to.weight_ih_transposed + list_.tokens[row] * GH;
        const T* from = dg_input + row * stride_;
        kernels_.add(gradient + mine.first, from + mine.first, mine.last - mine.first);
      }
    } else {
      outer_product(dg_input, stride_, GH, call_.panels.x, rows_, shape_.input, to.weight_ih);
    }
    if (shape_.bias) {
      column_sum(dg_input, nullptr, GH, to.bias_ih);
      // b_hh meets the same dG, but for that of a reset-after candidate.
      const Range mine = share_.slice(GH, kernels_.lanes);
      const Index last = std::min(mine.last, reset_after_ ? 2 * H_ : GH);
      if (mine.first < last) std::copy(to.bias_ih + mine.first, to.bias_ih + last, to.bias_hh + mine.first);
    }

    if (reset_after_) {  // columns n' r z to rows r z n
      outer_product(dg + H_, stride_, 2 * H_, call_.panels.h_prev, rows_with_h_, R_, to.weight_hh);
      outer_product(dg, stride_, H_, call_.panels.h_prev, rows_with_h_, R_, to.weight_hh + 2 * H_ * R_);
      if (shape_.bias) column_sum(dg, nullptr, H_, to.bias_hh + 2 * H_);
    } else {
      outer_product(dg, stride_, shape_.recurrent_gradient_columns(), call_.panels.h_prev, rows_with_h_, R_,
                    to.weight_hh);
      if (reset_before_)
        outer_product(dg + 2 * H_, stride_, H_, call_.panels.inner, rows_, H_, to.weight_hh + 2 * H_ * R_);
    }
    if (shape_.projection)
      outer_product(call_.projected, R_, R_, call_.panels.inner, rows_, H_, to.weight_hr);
    if (shape_.peephole == Peephole::diagonal) {
      column_sum(dg, list_.c_prev, H_, to.weight_ch);
      column_sum(dg + H_, list_.c_prev, H_, to.weight_ch + H_);
      column_sum(dg + 3 * H_, list_.c, H_, to.weight_ch + 2 * H_);
    } else if (full_) {
      outer_product(dg, stride_, 2 * H_, call_.panels.c_prev, rows_, H_, to.weight_ch);
      outer_product(dg + 3 * H_, stride_, H_, call_.panels.c, rows_, H_, to.weight_ch + 2 * H_ * H_);
    }
  }

  // Of the steps [first, last), whose dG are those rows.
  void input_gradient(Index first, Index last, Range rows) {
    if (!call_.dx) return;
    Range mine = share_.slice(rows.last - rows.first);
    mine = {rows.first + mine.first, rows.first + mine.last};
    for (Index row = mine.first; row < mine.last; ++row) {
      list_.in[row] = call_.dg + row * stride_ + shape_.input_gradient_offset();
    }
    Product<T> product;
    product.operand = {list_.in + mine.first, 1, weights_.input, shape_.gate_rows()};
    product.units = shape_.input;
    product.rows = mine.last - mine.first;
    product.panels = {0, panel_count(shape_.input, kernels_.lanes)};
    product.out = list_.dx + mine.first;
    kernels_.product(product);
    if (!call_.mask_dx) return;
    Index row = rows.first;
    for (Index step = last; step-- > first;) {
      for (Index j = 0; j < schedule_.active(step); ++j, ++row) {
        if (row < mine.first || row >= mine.last) continue;
        drop<T>(kernels_, *call_.dropout, schedule_.time(step, j, call_.reverse), schedule_.row(j),
                shape_.input, list_.dx[row], list_.mask, list_.dx[row]);
      }
    }
  }

  // The block's first step is what the block before it goes on from.
  void keep_step(Index first) {
    const Index active = schedule_.active(first);
    const T* rows = call_.dg + (rows_ - active) * stride_;
    const Range mine = share_.slice(active * stride_);
    std::copy(rows + mine.first, rows + mine.last, call_.dg_next + mine.first);
  }

  // Gradients of h0 and c0.
  void initial_state() {
    const bool lstm = shape_.cell == Cell::lstm;
    Index n = 0;  // rows that reach their initial state
    for (Index j = share_.tid; j < schedule_.batch(); j += share_.threads) {
      const Index b = schedule_.row(j);
      T* dh0 = call_.dh0 + b * R_;
      T* dc0 = lstm ? call_.dc0 + b * H_ : nullptr;
      const bool empty = schedule_.length(j) == 0;  // the final state is the initial one
      if (empty || call_.starts_piece(0, j)) {
        copy_or_zero(empty && call_.dh_n ? call_.dh_n + b * R_ : nullptr, dh0, R_);
        if (lstm) copy_or_zero(empty && call_.dc_n ? call_.dc_n + b * H_ : nullptr, dc0, H_);
        continue;
      }
      list_.dg_next[n] = call_.dg_next + j * stride_;
      list_.projected[n] = dh0;
      if (carries_) list_.extra[n] = call_.carry + j * R_;
      list_.dy[n] = scale(j);
      if (lstm) {
        list_.dc_next[n] = call_.dc + j * H_;
        list_.dc[n] = dc0;
      }
      ++n;
    }
    Product<T> product;
    product.operand = {list_.dg_next, 1, weights_.recurrent, shape_.recurrent_gradient_columns()};
    product.units = R_;
    product.rows = n;
    product.panels = {0, panel_count(R_, kernels_.lanes)};
    product.add = carries_ && !drops_h_ ? list_.extra : nullptr;
    product.out = list_.projected;
    kernels_.product(product);
    for (Index i = 0; i < n && drops_h_; ++i) {
      multiply(list_.dy[i], list_.projected[i], {0, R_}, list_.projected[i]);
      if (carries_) add(list_.extra[i], {0, R_}, list_.projected[i]);
    }
    if (full_) {
      product.operand = {list_.dg_next, 1, weights_.peephole_cell, 2 * H_};
      product.units = H_;
      product.panels = {0, panel_count(H_, kernels_.lanes)};
      product.add = list_.dc_next;
      product.out = list_.dc;
      kernels_.product(product);
    } else if (lstm) {
      for (Index i = 0; i < n; ++i) copy_or_zero(list_.dc_next[i], list_.dc[i], H_);
    }
  }

  static void copy_or_zero(const T* from, T* to, Index count) {
    if (from) {
      std::copy(from, from + count, to);
    } else {
      std::fill(to, to + count, T(0));
    }
  }

  const BackwardCall<T>& call_;
  const Share& share_;
  const LayerShape& shape_;
  const Schedule& schedule_;
  const Kernels<T>& kernels_;
  const TransposedLayer<T>& weights_;
  const Lists<T> list_;
  const Index H_, R_;
  const Range own_, own_h_;  // units of this thread, in H and in R
  const Index stride_;       // of dG's rows
  const bool full_, reset_after_, reset_before_;
  const bool drops_h_, zones_h_, zones_c_;
  const bool apart_;    // dh is computed before the step's kernel
  const bool carries_;  // something of dh reaches the h before directly
  const T** const h_read_;
  Index rows_ = 0;         // of the block
  Index rows_with_h_ = 0;  // of them, all but those of the first step if h is all zeros there
};

}  // namespace

Index gradient_block(const LayerShape& shape, Index steps, Index batch) {
  const bool near = shape.gate_rows() * std::max(shape.recurrent(), shape.input) <= kNearGradient;
  return std::clamp<Index>((near ? kNearBlockRows : kBlockRows) / std::max<Index>(batch, 1), 1,
                           std::max<Index>(steps, 1));
}

template <class T>
void BackwardCall<T>::layout(Arena& arena, int threads) {
  const LayerShape& s = this->shape;
  const int lanes = this->kernels->lanes;
  const Index B = this->batch, H = s.hidden, R = s.recurrent();
  block = gradient_block(s, this->schedule->steps(), B);
  const Index rows = block * B;
  const bool full = s.peephole == Peephole::full;
  auto take_panels = [&](Index units) { return arena.take<T>(panel_count(units, lanes) * rows * lanes); };

  if (this->segment) {
    const Index units = this->segment * B * H;
    this->gates = arena.take<T>(units * s.reserved_gates());
    this->cells = s.cell == Cell::lstm ? arena.take<T>(units) : nullptr;
    unused_h = arena.take<T>(threads * H);
  }
  constexpr Index line = kAlignment / sizeof(T);
  dg_stride = ((s.gradient_columns() + line - 1) / line | 1) * line;
  dg = arena.take<T>(rows * dg_stride);
  dg_next = arena.take<T>(B * dg_stride);
  dc = s.cell == Cell::lstm ? arena.take<T>(B * H) : nullptr;
  const bool gru = s.cell == Cell::gru, drops_h = this->noise && this->noise->drops_h,
             zones_h = this->noise && this->noise->zones_h, zones_c = this->noise && this->noise->zones_c;
  const bool apart = drops_h || zones_h;
  carry = gru || zones_h ? arena.take<T>(B * R) : nullptr;
  scale = drops_h ? arena.take<T>(B * R) : nullptr;
  h_read = drops_h ? arena.take<T>(rows * R) : nullptr;
  incoming = apart ? arena.take<T>(B * R) : nullptr;
  direct = gru && apart ? arena.take<T>(B * H) : nullptr;
  new_cells = zones_c ? arena.take<T>(rows * H) : nullptr;
  new_dc = zones_c ? arena.take<T>(B * H) : nullptr;
  kept_dc = zones_c ? arena.take<T>(B * H) : nullptr;
  candidate = s.cell == Cell::gru ? arena.take<T>(rows * H) : nullptr;
  projected = s.projection ? arena.take<T>(rows * R) : nullptr;
  hidden = s.projection ? arena.take<T>(rows * H) : nullptr;
  dropped = this->dropout ? arena.take<T>(rows * s.input) : nullptr;
  panels.x = this->tokens ? nullptr : take_panels(s.input);
  panels.h_prev = take_panels(R);
  panels.inner = s.projection || (s.cell == Cell::gru && !s.reset_after) ? take_panels(H) : nullptr;
  panels.c_prev = full ? take_panels(H) : nullptr;
  panels.c = full ? take_panels(H) : nullptr;
  zeros = arena.take_zeroed<T>(s.gradient_columns());
  list_bytes = lists_of(*this, Arena()).bytes;
  lists = arena.take<char>(list_bytes * threads);
}

template <class T>
void backward(const BackwardCall<T>& call, Range steps, const Share& share) {
  Walk<T>(call, share).run(steps);
}

template struct BackwardCall<float>;
template struct BackwardCall<double>;
template void backward(const BackwardCall<float>&, Range, const Share&);
template void backward(const BackwardCall<double>&, Range, const Share&);

}  // namespace fastrnn::cpu
