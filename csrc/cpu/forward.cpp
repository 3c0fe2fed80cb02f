// Forward over time.  Per block of steps: the input product W_ih x + b of all its rows, which stays in L2;
// then step by step the recurrent product, activations and state update in one pass over the weights.  With
// enough rows in a step, that pass does the input product too (`fused`).
#include <algorithm>
#include <cstring>

#include "cpu/noise.h"
#include "cpu/sequence.h"

namespace fastrnn::cpu {
namespace {

// Bytes of W_ih x + b computed ahead: well inside a 1 MB L2, beside a panel of weights.
constexpr Index kBlockBytes = 256 * 1024;
// A W_ih of so many bytes stays in L3, beside W_hh and the sequences; of so many it drives W_hh out of L3.
constexpr Index kNearInput = 4 * 1024 * 1024, kFarInput = 8 * 1024 * 1024;
// Rows in a block below which the input product would read W_ih for too little work, and for a W_ih that is
// far: there 256 are 3 to 10 % faster than 48 (float32, H = 1024), nearer 10 % slower (bfloat16).
constexpr Index kBlockRows = 48, kFarBlockRows = 256;

template <class W>
Index input_bytes(const LayerShape& shape) {
  return shape.gate_rows() * shape.input * static_cast<Index>(sizeof(W));
}

template <class T>
void copy(const T* from, T* to, Index count) {
  if (from != to) std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

// Rows as the products read them: as they are, or rounded, in memory of one thread.  Every thread rounds all
// rows that it reads, even where it has a part of the units only: that is less work than a barrier takes.
template <class W>
class RowsAtProduct {
 public:
  RowsAtProduct(Arena&, Index, Index, const ForwardKernels<W>&) {}
  Operand<W> operand(const W* const* rows, Index, const W* panels, Index depth) const {
    return {rows, 1, panels, depth};
  }
};

template <class W>
class RoundedRows {
 public:
  RoundedRows(Arena& arena, Index count, Index depth, const ForwardKernels<W>& kernels)
      : kernels_(kernels),
        row_bytes_(count > 0 ? kernels.round_bytes(depth) : 0),
        memory_(arena.take<char>(count * row_bytes_)),
        rows_(arena.take<char*>(count)) {
    if (rows_) {
      for (Index i = 0; i < count; ++i) rows_[i] = memory_ + i * row_bytes_;
    }
  }
  Operand<W> operand(const float* const* rows, Index count, const W* panels, Index depth) const {
    kernels_.round_rows({rows, rows_, count, depth});
    return {rows_, 1, panels, depth};
  }

 private:
  const ForwardKernels<W>& kernels_;
  Index row_bytes_;
  char* memory_;
  char** rows_;
};
template <>
class RowsAtProduct<bfloat16_t> : public RoundedRows<bfloat16_t> {
  using RoundedRows::RoundedRows;
};
template <>
class RowsAtProduct<std::int8_t> : public RoundedRows<std::int8_t> {
  using RoundedRows::RoundedRows;
};

// One thread's lists of rows: a block's input product, and one step.
template <class W>
struct Lists {
  using T = Compute<W>;
  const T** x;
  std::int64_t* tokens;
  T** block_pre;
  T **c, **h, **y, **reset_h;
  const T **h_prev, **c_prev;

  // At the products: x, what W_hh or a projection multiplies, and what a full peephole does.
  RowsAtProduct<W> inputs, states, cells;

  Lists(Arena arena, Index block_rows, Index B, const LayerShape& shape, bool with_tokens,
        const ForwardKernels<W>& kernels)
      : x(arena.take<const T*>(block_rows)),
        tokens(arena.take<std::int64_t>(block_rows)),
        block_pre(arena.take<T*>(block_rows)),
        c(arena.take<T*>(B)),
        h(arena.take<T*>(B)),
        y(arena.take<T*>(B)),
        reset_h(arena.take<T*>(B)),
        h_prev(arena.take<const T*>(B)),
        c_prev(arena.take<const T*>(B)),
        inputs(arena, with_tokens ? 0 : block_rows, shape.input, kernels),
        states(arena, B, shape.hidden, kernels),
        cells(arena, shape.peephole == Peephole::full ? B : 0, shape.hidden, kernels),
        bytes(static_cast<Index>(arena.used())) {}

  Index bytes;
};

// ---- Recurrent dropout and zoneout of one thread's rows and units.  Functions of their own, not given
// `Lists` by reference, because they must not burden the loop over the steps, nor a call of one small step,
// where there is neither.

// Row j's h under the mask after so many steps.
template <class W>
Compute<W>* masked_h(const ForwardCall<W>& call, Index done, Index j) {
  return call.h_read + (done % 2 * call.batch + j) * call.shape.recurrent();
}

// Before the first step: the mask, and h0 under it.
template <class W>
[[gnu::noinline]] void begin_noise(const ForwardCall<W>& call, const Share& share) {
  if (!call.noise->drops_h) return;
  const Index R = call.shape.recurrent();
  for (Index j = share.tid; j < call.schedule->batch(); j += share.threads) {
    const Index b = call.schedule->row(j);
    draw_scale(*call.kernels, call.noise->recurrent, 0, b, call.direction(), {0, R}, call.scale + j * R);
    if (call.h0) multiply(call.scale + j * R, call.h0 + b * R, {0, R}, masked_h(call, 0, j));
  }
  share.wait_units();
}

// A step's rows of h as its products read it.
template <class W>
[[gnu::noinline]] const Compute<W>* const* list_h_read(const ForwardCall<W>& call, const Share& share,
                                                       Index step, Index active,
                                                       const Compute<W>* const* h_prev) {
  if (!call.noise->drops_h) return h_prev;
  const Compute<W>** list = call.h_read_lists + share.tid * call.batch;
  for (Index i = 0; i < active; ++i)
    list[i] = h_prev[i] == call.zeros ? call.zeros : masked_h(call, step, share.nth_row(i));
  return list;
}

// The state that a step leaves, after its kernels, and the h that the next one reads.
template <class W>
[[gnu::noinline]] void add_noise(const ForwardCall<W>& call, const Share& share, Index step, Index active,
                                 const Compute<W>* const* h_prev, const Compute<W>* const* c_prev,
                                 Compute<W>* const* c, Compute<W>* const* y) {
  const StateNoise& noise = *call.noise;
  const Index H = call.shape.hidden, R = call.shape.recurrent();
  // All reads of the new c.
  if (noise.zones_c && call.shape.peephole == Peephole::full) share.wait_units();
  const Range own = share.units(H, call.kernels->lanes), own_h = share.units(R, call.kernels->lanes);
  Compute<W>* const keep = call.keep + share.tid * H;
  for (Index i = 0; i < active; ++i) {
    const Index j = share.nth_row(i);
    const Index t = call.schedule->time(step, j, call.reverse), b = call.schedule->row(j);
    if (noise.zones_c) {
      draw_keep(*call.kernels, noise.c, t, b, call.direction(), own, keep);
      zone_out(keep, c_prev[i], own, c[i]);
    }
    if (noise.zones_h) {
      draw_keep(*call.kernels, noise.h, t, b, call.direction(), own_h, keep);
      zone_out(keep, h_prev[i], own_h, y[i]);
    }
    if (noise.drops_h) multiply(call.scale + j * R, y[i], own_h, masked_h(call, step + 1, j));
  }
}

}  // namespace

template <class W>
bool fuses_input(const LayerShape& shape, Index rows, bool tokens, const ForwardKernels<W>& kernels) {
  if (shape.peephole == Peephole::full || (shape.cell == Cell::gru && !shape.reset_after)) return false;
  return tokens ||
         rows >= (input_bytes<W>(shape) <= kNearInput ? kernels.rows_of_tile(shape.gates()) : kBlockRows);
}

template <class W>
void ForwardCall<W>::layout(Arena& arena, const Split& split) {
  const LayerShape& s = this->shape;
  const Index B = this->batch, GH = s.gate_rows();
  const Index row_bytes = GH * static_cast<Index>(sizeof(T));
  // A block has at least one step of all rows, and no more rows than there are. Gathering is always fused.
  const bool gathers = this->tokens && fuses_input(s, B, true, *kernels);
  const Index least = this->tokens || input_bytes<W>(s) <= kFarInput ? kBlockRows : kFarBlockRows;
  block_rows =
      gathers ? B : std::min(std::max({kBlockBytes / row_bytes, least, B}), this->schedule->steps() * B);
  // In training the gates of the reserve are computed in place.
  const Index slabs = split.by_units ? 1 : split.threads;
  pre = this->gates || gathers ? nullptr : arena.take<T>(slabs * block_rows * GH);
  dropped = this->dropout ? arena.take<T>(slabs * block_rows * s.input) : nullptr;
  hidden = s.projection ? arena.take<T>(B * s.hidden) : nullptr;
  reset_h = s.cell == Cell::gru && !s.reset_after ? arena.take<T>(B * s.hidden) : nullptr;
  zeros = arena.take_zeroed<T>(s.hidden);
  const bool zones_c = this->noise && this->noise->zones_c;
  const bool two_cells = (s.peephole == Peephole::full || zones_c) && !this->cells;
  cell_pair = two_cells ? arena.take<T>(2 * B * s.hidden) : nullptr;
  if (this->noise) {
    keep = arena.take<T>(split.threads * s.hidden);
  }
  if (this->noise && this->noise->drops_h) {
    scale = arena.take<T>(B * s.recurrent());
    h_read = arena.take<T>(2 * B * s.recurrent());
    h_read_lists = arena.take<const T*>(split.threads * B);
  }
  list_bytes = Lists<W>(Arena(), block_rows, B, s, this->tokens, *kernels).bytes;
  lists = arena.take<char>(list_bytes * split.threads);
}

template <class W>
void forward(const ForwardCall<W>& call, Range steps, const Share& share) {
  using T = Compute<W>;
  const LayerShape& shape = call.shape;
  const Schedule& schedule = *call.schedule;
  const ForwardKernels<W>& kernels = *call.kernels;
  const PackedLayer<W>& weights = *call.weights;
  const Index B = call.batch, H = shape.hidden, R = shape.recurrent(), GH = shape.gate_rows();
  const bool lstm = shape.cell == Cell::lstm;
  const Range panels = share.panels(H, kernels.lanes);

  const Lists<W> list(Arena(call.lists + call.list_bytes * share.tid), call.block_rows, B, shape, call.tokens,
                      kernels);
  // By rows, each thread goes through the sequence at its own pace, with blocks of its own.
  const Index slab = (share.by_units ? 0 : share.tid) * call.block_rows;

  auto state_row = [&](Index b) { return call.state_rows ? call.state_rows[b] : b; };

  if (call.noise && steps.first == 0) begin_noise(call, share);

  // A row of no steps keeps its state.
  for (Index j = share.tid; j < schedule.batch(); j += share.threads) {
    if (steps.first > 0 || schedule.length(j) > 0) continue;
    const Index state = state_row(schedule.row(j));
    copy(call.h0 ? call.h0 + state * R : call.zeros, call.h_n + state * R, R);
    if (lstm) copy(call.c0 ? call.c0 + state * H : call.zeros, call.c_n + state * H, H);
  }

  Index last = 0;
  for (Index first = steps.first; first < steps.last; first = last) {
    // Later steps have no more rows than this one.
    const Index most = share.rows_of(schedule.active(first));
    const bool fused = fuses_input(shape, most, call.tokens, kernels);
    last = fused ? first + 1 : std::min(first + call.block_rows / std::max<Index>(most, 1), steps.last);

    // ---- W_ih x + b of the block
    Index rows = 0;
    for (Index step = first; step < last; ++step) {
      const Index active = share.rows_of(schedule.active(step));
      for (Index i = 0; i < active; ++i, ++rows) {
        const Index j = share.nth_row(i);
        const Index t = schedule.time(step, j, call.reverse), b = schedule.row(j);
        list.block_pre[rows] = call.gates ? call.gates + (t * B + b) * GH : call.pre + (slab + rows) * GH;
        if (call.tokens) {
          list.tokens[rows] = call.tokens[t * B + b];
        } else if (call.dropout) {
          T* dropped = call.dropped + (slab + rows) * shape.input;
          if (!share.by_units || rows % share.threads == share.tid) {
            drop(kernels, *call.dropout, t, b, shape.input, call.x.at(t, b), dropped, dropped);
          }
          list.x[rows] = dropped;
        } else {
          list.x[rows] = call.x.at(t, b);
        }
      }
    }
    if (call.dropout) share.wait_units();
    if (!fused) {
      const Operand<W> input =
          call.tokens ? Operand<W>() : list.inputs.operand(list.x, rows, weights.input, shape.input);
      input_product(kernels, weights, shape, panels, rows, input, call.tokens ? list.tokens : nullptr,
                    list.block_pre);
    }

    // ---- the steps
    T* const* pre = list.block_pre;
    for (Index step = first; step < last; ++step) {
      const Index active = share.rows_of(schedule.active(step));
      for (Index i = 0; i < active; ++i) {
        const Index j = share.nth_row(i);
        const Index t = schedule.time(step, j, call.reverse), b = schedule.row(j);
        const Index state = state_row(b);
        const bool zero = call.starts_piece(step, j);
        const Index t_prev = call.reverse ? t + 1 : t - 1;
        list.y[i] = call.y.at(t, b);
        list.h[i] = call.hidden ? call.hidden + j * H : list.y[i];
        if (call.reset_h) list.reset_h[i] = call.reset_h + j * H;
        list.h_prev[i] = zero       ? call.zeros
                         : step > 0 ? call.y.at(t_prev, b)
                         : call.h0  ? call.h0 + state * R
                                    : call.zeros;
        if (lstm) {
          auto cell = [&](Index at_step, Index at_time) {
            if (call.cells) return call.cells + call.saved_at(at_step, at_time, b) * H;
            if (T* kept = call.kept_cell(at_step, b)) return kept;
            if (call.cell_pair) return call.cell_pair + (at_step % 2 * B + j) * H;
            return call.c_n + state * H;
          };
          list.c[i] = cell(step, t);
          list.c_prev[i] = zero       ? call.zeros
                           : step > 0 ? cell(step - 1, t_prev)
                           : call.c0  ? call.c0 + state * H
                                      : call.zeros;
        }
      }

      const T* const* h_read = list.h_prev;
      if (call.noise) h_read = list_h_read(call, share, step, active, h_read);
      StepForward<W> args;
      args.units = H;
      args.rows = active;
      args.panels = panels;
      args.panels.backwards =
          step % 2 == 1;  // begin with the weights that were read last: they are still in cache
      const bool from_zeros = step == 0 && !call.h0;  // of all rows: nothing to multiply
      if (!from_zeros) args.recurrent = list.states.operand(h_read, active, weights.recurrent, R);
      if (fused) {
        args.bias = weights.bias;
        if (call.tokens) {
          args.tokens = list.tokens;
          args.columns = weights.input;
          args.vocabulary = shape.input;
        } else {
          args.input = list.inputs.operand(list.x, active, weights.input, shape.input);
        }
      } else {
        args.pre = pre;
      }
      // Between the two products of such a step, o or the gates wait there.
      const bool two = shape.peephole == Peephole::full || (shape.cell == Cell::gru && !shape.reset_after);
      args.gates = call.gates || two ? pre : nullptr;
      args.h_prev = list.h_prev;
      args.h = list.h;
      args.reset_h = list.reset_h;
      if (lstm) {
        args.c_prev = list.c_prev;
        args.c = list.c;
      }
      forward_cell(kernels, weights, shape, share, args, h_read,
                   [&](const T* const* inner, const W* inner_panels) {
                     if (lstm) return list.cells.operand(inner, active, inner_panels, H);
                     return from_zeros ? Operand<W>() : list.states.operand(inner, active, inner_panels, H);
                   });
      if (shape.projection) {
        share.wait_units();
        Product<W> product;
        product.operand = list.states.operand(list.h, active, weights.projection, H);
        product.units = R;
        product.rows = active;
        product.panels = share.panels(R, kernels.lanes);
        product.out = list.y;
        kernels.product(product);
      }
      if (call.noise) add_noise<W>(call, share, step, active, list.h_prev, list.c_prev, list.c, list.y);
      share.wait_units();  // all of h_t before anyone reads it; all reads of h0 before h_n, which may be the
                           // same

      // Rows that end here.  By units, rows are dealt out for this.
      for (Index i = share.by_units ? share.tid : 0; i < active; i += share.by_units ? share.threads : 1) {
        const Index j = share.nth_row(i);
        if (schedule.length(j) != step + 1) continue;
        const Index state = state_row(schedule.row(j));
        copy<T>(list.y[i], call.h_n + state * R, R);
        if (lstm) copy<T>(list.c[i], call.c_n + state * H, H);
      }
      pre += active;
    }
  }
  call.reach(steps.last, share);
}

template struct ForwardCall<float>;
template struct ForwardCall<double>;
template struct ForwardCall<bfloat16_t>;
template struct ForwardCall<std::int8_t>;
template bool fuses_input(const LayerShape&, Index, bool, const ForwardKernels<float>&);
template bool fuses_input(const LayerShape&, Index, bool, const ForwardKernels<double>&);
template bool fuses_input(const LayerShape&, Index, bool, const ForwardKernels<bfloat16_t>&);
template bool fuses_input(const LayerShape&, Index, bool, const ForwardKernels<std::int8_t>&);
template void forward(const ForwardCall<float>&, Range, const Share&);
template void forward(const ForwardCall<double>&, Range, const Share&);
template void forward(const ForwardCall<bfloat16_t>&, Range, const Share&);
template void forward(const ForwardCall<std::int8_t>&, Range, const Share&);

}  // namespace fastrnn::cpu
