// Back-propagation through time over a stack: per direction of a layer, step by step from the end, one
// pointwise kernel that makes dG and one product that takes it to the h before, or one kernel for all steps
// and both directions; then products over all steps for the weights and x. The analogue of cpu/backward.cpp
// and ops/run.cpp. Sums have a fixed order: no atomics anywhere.
#include <algorithm>

#include "core/check.h"
#include "cuda/cublas.h"
#include "cuda/kernels/elman_step.h"
#include "cuda/kernels/gru_step.h"
#include "cuda/kernels/lstm_step.h"
#include "cuda/persistent.h"
#include "cuda/sequence.h"

namespace fastrnn::cuda {
namespace {

// One direction of one layer.
template <class T>
class BackwardPart {
 public:
  using A = Compute<T>;

  LayerShape shape;
  LayerParameters<T> weights;
  LayerArrays<T> gradients;
  bool add = false;  // to what the gradients hold
  Walk walk;
  Rows<const T> x;                       // [T,B,I]; not with tokens
  const std::int64_t* tokens = nullptr;  // [T,B] or null
  KeyedDropout x_mask;
  Noise noise;
  Rows<const T> y;   // as forward left it
  Rows<const T> dy;  // [T,B,R] or null
  const T* h0 = nullptr;
  const T* c0 = nullptr;
  const T* dh_n = nullptr;
  const T* dc_n = nullptr;
  T* dx = nullptr;  // [T,B] rows of I, dx_stride apart, or null
  Index dx_stride = 0;
  bool add_dx = false;  // += instead of =: the second direction
  T* dh0 = nullptr;     // null: not wanted
  T* dc0 = nullptr;
  typename Reserve<T>::Part reserve;

  // Lays out scratch; with no memory it measures.
  void layout(Arena& arena, const Queue& queue) {
    const Index B = walk.batch, T_B = walk.steps * B, I = shape.input, H = shape.hidden,
                R = shape.recurrent();
    const Index GH = shape.gate_rows(), width = shape.gradient_columns();
    const bool full = shape.peephole == Peephole::full;
    // The rows of a step lie together in [T,B], but where reversed rows of different lengths are at different
    // times.
    const bool scattered = walk.reverse && walk.lengths;
    dg_ = arena.take<T>(T_B * width);
    dg_step_ = scattered ? arena.take<T>(B * width) : nullptr;
    dh_ = arena.take<A>(B * R);
    h_prev_ = arena.take<T>(T_B * R);
    Index flat_stride = 0;
    const bool copy_x =
        !tokens && (x_mask || walk.lengths || !is_flat(x, walk.steps, B, shape.input, flat_stride));
    x_copy_ = copy_x ? arena.take<T>(T_B * I) : nullptr;
    dc_ = shape.cell == Cell::lstm ? arena.take<A>(B * H) : nullptr;
    carry_ = shape.cell == Cell::gru || noise.zones_h ? arena.take<A>(B * R) : nullptr;
    recurrent_weights_ = reset_after() ? arena.take<T>(GH * R) : nullptr;
    inner_product_ = full || shape.projection || reset_before() ? arena.take<A>(B * H) : nullptr;
    if (shape.projection) {
      dp_ = arena.take<T>(T_B * R);
      dp_step_ = scattered ? arena.take<T>(B * R) : nullptr;
    }
    if (full) {
      new_dc_ = arena.take<A>(B * H);
      output_product_ = arena.take<A>(B * H);
      next_product_ = arena.take<A>(B * H);
    }
    token_keys_ = tokens ? arena.take<std::uint64_t>(2 * T_B) : nullptr;
    token_starts_ = tokens ? arena.take<Index>(I + 1) : nullptr;
    const bool reads_new_cells = shape.projection || shape.peephole != Peephole::none;
    rows_ = reads_new_cells ? arena.take<T>(T_B * H) : nullptr;
    new_cells_ = reads_new_cells && noise.zones_c ? arena.take<A>(T_B * H) : nullptr;
    partial_ = arena.take<A>(chunks(queue) * std::max(width, H));
    Index split = 0;
    const auto need = [&](Index rows, Index columns, Index depth) {
      split = std::max(split, queue.split_bytes<T>(rows, columns, depth));
    };
    need(GH, std::max(I, R), T_B);
    need(T_B, I, GH);
    split_ = arena.take<char>(split);
  }

  // What comes before the steps, and after them.
  void begin(const Queue& queue) const {
    gather_h_prev(queue);
    reorder_recurrent_weights(queue);
  }
  void end(const Queue& queue) const {
    initial_state(queue);
    input_weights(queue);
    mask_h_prev(queue);
    recurrent_weights(queue);
    if (shape.projection) projection_weights(queue);
    if (shape.peephole != Peephole::none) peephole_weights(queue);
  }

  void run(const Queue& queue) const {
    begin(queue);
    for (Index step = walk.steps; step-- > 0;) {
      if (step + 1 < walk.steps) to_previous_step(queue, step + 1);
      switch (shape.cell) {
        case Cell::lstm: lstm_step(queue, step); break;
        case Cell::gru: gru_step(queue, step); break;
        case Cell::rnn: elman_step(queue, step); break;
      }
    }
    end(queue);
  }

  // The steps as a persistent kernel takes them.
  PersistentBackwardPart<T> steps() const {
    PersistentBackwardPart<T> p;
    p.walk = walk;
    p.weight_hh = weights.weight_hh;
    p.peephole = weights.weight_ch;
    p.gates = reserve.gates;
    p.cells = reserve.cells;
    p.h_prev = h_prev_;
    p.y = y;
    p.c0 = c0;
    p.dy = dy;
    p.dh_n = dh_n;
    p.dc_n = dc_n;
    p.dg = {dg_, dg_step_, width()};
    p.state = shape.cell == Cell::lstm ? dc_ : carry_;
    return p;
  }

  // After run(): both directions write the same dx, one after the other.
  void input_gradient(const Queue& queue) const {
    if (!dx) return;
    queue.product<T>(walk.steps * walk.batch, shape.input, shape.gate_rows(), plain(dg_input(), width()),
                     plain(weights.weight_ih, shape.input), dx, dx_stride, split_, add_dx);
  }

 private:
  bool reset_after() const { return shape.cell == Cell::gru && shape.reset_after; }
  bool reset_before() const { return shape.cell == Cell::gru && !shape.reset_after; }
  Index width() const { return shape.gradient_columns(); }
  const A* new_cells() const { return new_cells_ ? new_cells_ : reserve.cells; }  // before their zoneout
  Index all_rows() const { return walk.steps * walk.batch; }
  const T* dg_input() const { return dg_ + shape.input_gradient_offset(); }
  Index chunks(const Queue& queue) const { return ceil_div(all_rows(), queue.plan().sum_rows); }

  // The rows of one step of an array [T,B,columns], or their copy.
  const T* at_step(const T* all, const T* copy, Index step, Index columns) const {
    if (copy) return copy;
    return all + (walk.reverse ? walk.steps - 1 - step : step) * walk.batch * columns;
  }
  const T* dg_at(Index step) const { return at_step(dg_, dg_step_, step, width()); }

  // ---- before the steps

  template <class From>
  void gather(const Queue& queue, Rows<const From> from, T* to, Index columns, bool previous,
              const T* initial) const {
    typename GatherRows<From, T>::Params p;
    p.walk = walk;
    p.width = columns;
    p.from = from;
    p.to = contiguous(to, walk.batch, columns);
    p.previous = previous;
    p.initial = initial;
    queue.run<GatherRows<From, T>>(walk.steps, walk.batch, GatherRows<From, T>::groups(columns, 1), p);
  }

  // h as each step saw it: neither y nor its neighbours, where there are resets, lengths, an initial state.
  void gather_h_prev(const Queue& queue) const { gather<T>(queue, y, h_prev_, shape.recurrent(), true, h0); }

  // W_hh's rows in the order of dG's columns n' r z.
  void reorder_recurrent_weights(const Queue& queue) const {
    if (!reset_after()) return;
    const Index block = shape.hidden * shape.recurrent();
    const std::size_t bytes = static_cast<std::size_t>(block) * sizeof(T);
    copy_on_device(recurrent_weights_, weights.weight_hh + 2 * block, bytes, queue.stream());
    copy_on_device(recurrent_weights_ + block, weights.weight_hh, 2 * bytes, queue.stream());
  }

  // ---- the steps

  // From dG of a step to the gradient of the state that entered it.
  void to_previous_step(const Queue& queue, Index step) const {
    const Index B = walk.batch, R = shape.recurrent(), H = shape.hidden;
    queue.step_product<T>(B, R, shape.recurrent_gradient_columns(), plain(dg_at(step), width()),
                          plain(recurrent_weights_ ? recurrent_weights_ : weights.weight_hh, R), dh_, R);
    if (shape.peephole == Peephole::full) {
      queue.step_product<T>(B, H, 2 * H, plain(dg_at(step), width()), plain(weights.weight_ch, H),
                            next_product_, H);
    }
  }

  Incoming<T> incoming() const {
    Incoming<T> in;
    in.dy = dy;
    in.recurrent = dh_;
    in.carry = carry_;
    in.final_state = dh_n;
    return in;
  }

  void lstm_step(const Queue& queue, Index step) const {
    const Index B = walk.batch, H = shape.hidden, R = shape.recurrent();
    auto p = step_params<LstmBackward<T>>(*this, step, H);
    if (shape.projection) {
      auto q = step_params<LstmProjectBackward<T>>(*this, step, R);
      q.incoming = incoming();
      q.dp = {dp_, dp_step_, R};
      queue.run<LstmProjectBackward<T>>(B, R, q);
      queue.step_product<T>(B, H, R, plain(at_step(dp_, dp_step_, step, R), R), plain(weights.weight_hr, H),
                            inner_product_, H);
      p.unprojected = inner_product_;
    } else {
      p.incoming = incoming();
    }
    p.gates = reserve.gates;
    p.cells = reserve.cells;
    p.c0 = c0;
    p.final_cell = dc_n;
    p.dc = dc_;
    p.dg = {dg_, dg_step_, width()};
    p.new_cells = new_cells_;
    if (shape.peephole == Peephole::full) {
      p.phase = LstmPhase::output;
      p.new_dc = new_dc_;
      p.next_product = next_product_;
      queue.run<LstmBackward<T>>(B, H, p);
      p.phase = LstmPhase::cell;
      p.output_product = output_product_;
      queue.step_product<T>(B, H, H, plain(dg_at(step) + 3 * H, width()),
                            plain(weights.weight_ch + 2 * H * H, H), output_product_, H);
    } else if (shape.peephole == Peephole::diagonal) {
      p.peephole = weights.weight_ch;
    }
    queue.run<LstmBackward<T>>(B, H, p);
  }

  void gru_step(const Queue& queue, Index step) const {
    const Index B = walk.batch, H = shape.hidden;
    auto p = step_params<GruBackward<T>>(*this, step, H);
    p.incoming = incoming();
    p.gates = reserve.gates;
    p.h_prev = h_prev_;
    p.dg = {dg_, dg_step_, width()};
    if (reset_before()) {
      p.phase = GruPhase::candidate;
      queue.run<GruBackward<T>>(B, H, p);
      p.phase = GruPhase::reset;
      p.product = inner_product_;
      queue.step_product<T>(B, H, H, plain(dg_at(step) + 2 * H, width()),
                            plain(weights.weight_hh + 2 * H * H, H), inner_product_, H);
    }
    queue.run<GruBackward<T>>(B, H, p);
  }

  void elman_step(const Queue& queue, Index step) const {
    auto p = step_params<ElmanBackward<T>>(*this, step, shape.hidden);
    p.nonlinearity = shape.nonlinearity;
    p.incoming = incoming();
    p.y = y;
    p.dg = {dg_, dg_step_, width()};
    queue.run<ElmanBackward<T>>(walk.batch, shape.hidden, p);
  }

  // ---- after the steps

  void initial_state(const Queue& queue) const {
    if (!dh0) return;
    if (walk.steps > 0) to_previous_step(queue, 0);
    typename InitialGradient<T>::Params p;
    p.walk = walk;
    p.width = shape.recurrent();
    p.step = dh_;
    p.more = carry_;
    p.final_state = dh_n;
    p.to = dh0;
    p.noise = noise;
    queue.run<InitialGradient<T>>(walk.batch, p.width, p);
    if (!dc0) return;
    p.noise = {};
    p.width = shape.hidden;
    p.step = dc_;
    p.more = next_product_;
    p.final_state = dc_n;
    p.to = dc0;
    queue.run<InitialGradient<T>>(walk.batch, p.width, p);
  }

  // to [columns] = sum over all rows of a (times b), or +=; `also` the first ones of them.
  void column_sum(const Queue& queue, const T* a, Index columns, T* to, const T* b = nullptr,
                  T* also = nullptr, Index also_columns = 0) const {
    typename ColumnSum<T>::Params p;
    p.rows = all_rows();
    p.columns = columns;
    p.chunk = queue.plan().sum_rows;
    p.a = a;
    p.a_stride = width();
    p.b = b;
    p.partial = partial_;
    queue.run<ColumnSum<T>>(chunks(queue), columns, p);
    queue.run<FinishSum<T>>(1, columns, {chunks(queue), columns, partial_, to, also, also_columns, add});
  }

  // to [columns,units] = sum over all rows of a's columns times b's units, or +=.
  void outer_product(const Queue& queue, const T* a, Index a_stride, Index columns, const T* b,
                     Index b_stride, Index units, T* to) const {
    queue.product<T>(columns, units, all_rows(), transposed(a, a_stride), plain(b, b_stride), to, units,
                     split_, add);
  }

  void input_weights(const Queue& queue) const {
    const Index I = shape.input, GH = shape.gate_rows();
    if (tokens) {
      token_gradient(queue, tokens, all_rows(), I, dg_input(), width(), GH, gradients.weight_ih, add,
                     token_keys_, token_starts_);
    } else {
      const Operand input = input_operand(queue, walk, x, I, x_mask, x_copy_);
      queue.product<T>(GH, I, all_rows(), transposed(dg_input(), width()), input, gradients.weight_ih, I,
                       split_, add);
    }
  }

  // h as W_hh read it, in place.
  void mask_h_prev(const Queue& queue) const {
    const Index R = shape.recurrent();
    if (noise.drops_h) {
      copy_rows<T>(queue, walk, contiguous<const T>(h_prev_, walk.batch, R), R, {noise.recurrent, noise.key},
                   contiguous(h_prev_, walk.batch, R));
    }
  }

  // With W_hh the biases: b_hh's gradient is b_ih's, but for the reset-after candidate.
  void recurrent_weights(const Queue& queue) const {
    const Index H = shape.hidden, R = shape.recurrent();
    T* const candidate = gradients.weight_hh + 2 * H * R;
    if (reset_after()) {  // columns n' r z to rows r z n
      outer_product(queue, dg_ + H, width(), 2 * H, h_prev_, R, R, gradients.weight_hh);
      outer_product(queue, dg_, width(), H, h_prev_, R, R, candidate);
    } else {
      outer_product(queue, dg_, width(), shape.recurrent_gradient_columns(), h_prev_, R, R,
                    gradients.weight_hh);
    }
    if (reset_before()) {
      typename GruResetHidden<T>::Params p;
      p.walk = walk;
      p.units = H;
      p.gates = reserve.gates;
      p.h_prev = h_prev_;
      queue.run<GruResetHidden<T>>(walk.steps, walk.batch, H, p);
      outer_product(queue, dg_ + 2 * H, width(), H, h_prev_, R, R, candidate);
    }
    if (!shape.bias) return;
    const Index shared = (reset_after() ? 2 : shape.gates()) * H;
    column_sum(queue, dg_input(), shape.gate_rows(), gradients.bias_ih, nullptr, gradients.bias_hh, shared);
    if (reset_after()) column_sum(queue, dg_, H, gradients.bias_hh + 2 * H);
  }

  void projection_weights(const Queue& queue) const {
    const Index H = shape.hidden, R = shape.recurrent();
    typename LstmHidden<T>::Params p;
    p.walk = walk;
    p.units = H;
    p.gates = reserve.gates;
    p.cells = new_cells();
    p.hidden = rows_;
    queue.run<LstmHidden<T>>(walk.steps, walk.batch, H, p);
    outer_product(queue, dp_, R, R, rows_, H, H, gradients.weight_hr);
  }

  void peephole_weights(const Queue& queue) const {
    const Index H = shape.hidden;
    const bool full = shape.peephole == Peephole::full;
    gather<A>(queue, contiguous<const A>(reserve.cells, walk.batch, H), rows_, H, true, c0);
    if (full) {
      outer_product(queue, dg_, width(), 2 * H, rows_, H, H, gradients.weight_ch);
    } else {
      column_sum(queue, dg_, H, gradients.weight_ch, rows_);
      column_sum(queue, dg_ + H, H, gradients.weight_ch + H, rows_);
    }
    gather<A>(queue, contiguous(new_cells(), walk.batch, H), rows_, H, false, nullptr);
    if (full) {
      outer_product(queue, dg_ + 3 * H, width(), H, rows_, H, H, gradients.weight_ch + 2 * H * H);
    } else {
      column_sum(queue, dg_ + 3 * H, H, gradients.weight_ch + 2 * H, rows_);
    }
  }

  T* dg_ = nullptr;                 // [T,B,gradient_columns]
  T* dg_step_ = nullptr;            // [B,gradient_columns], or null
  A* dh_ = nullptr;                 // [B,R]: dG times W_hh
  T* h_prev_ = nullptr;             // [T,B,R]
  T* x_copy_ = nullptr;             // [T,B,I]: x as flat rows, masked, zeros at padding
  A* dc_ = nullptr;                 // [B,H]
  A* carry_ = nullptr;              // [B,R]
  T* recurrent_weights_ = nullptr;  // (3H,H): reset-after, rows n r z
  // [B,H], of a step's second product: gradient of the h before its projection, or of r h.
  A* inner_product_ = nullptr;
  T* dp_ = nullptr;         // [T,B,P]: gradient of the projected h
  T* dp_step_ = nullptr;    // [B,P], or null
  A* new_cells_ = nullptr;  // [T,B,H]: where zoneout makes others of them
  A* new_dc_ = nullptr;     // full peephole, [B,H] each
  A* output_product_ = nullptr;
  A* next_product_ = nullptr;
  std::uint64_t* token_keys_ = nullptr;  // what token_gradient wants
  Index* token_starts_ = nullptr;
  T* rows_ = nullptr;     // [T,B,H]: h before its projection, or c
  A* partial_ = nullptr;  // [chunks, widest sum]
  void* split_ = nullptr;
};

// All steps of a layer in one launch.
template <class T>
void run_persistent(const Queue& queue, const Request& request,
                    const std::vector<BackwardPart<T>>& directions) {
  using Part = BackwardPart<T>;
  run_side_by_side(queue, directions, [](const Part& part, const Queue& on) { part.begin(on); });
  launch_persistent<BackwardPass, T>(queue.stream(), request, queue.plan().backward.launch, directions);
  run_side_by_side(queue, directions, [](const Part& part, const Queue& on) { part.end(on); });
}

template <class T>
void run_layer(const Queue& queue, const Request& request, const std::vector<BackwardPart<T>>& directions) {
  if constexpr (!std::is_same_v<T, double>) {
    if (queue.plan().backward.strategy != Strategy::step) return run_persistent(queue, request, directions);
  }
  run_directions(queue, directions);
}

// The arguments of a call, and its layers.
template <class T>
struct BackwardCall {
  const Network& network;
  const BackwardArguments<T>& args;
  const Reserve<T>& reserve;
  bool dx_in_place = false;  // are the rows of the caller's dx flat?
  Index dx_stride = 0;

  BackwardCall(const Network& of, const BackwardArguments<T>& with, const Reserve<T>& saved)
      : network(of), args(with), reserve(saved) {
    FRNN_CHECK(reserve.belongs_to(network, args.steps, args.batch), "the reserve belongs to another call");
    const auto parameters = static_cast<std::size_t>(network.parts() * network.parameters_per_part());
    FRNN_CHECK(args.parameters.size() == parameters && args.gradients.size() == parameters,
               "a parameter or gradient is missing or too many");
    dx_in_place = args.dx && is_flat(args.dx, args.steps, args.batch, network.first.input, dx_stride);
    if (!dx_in_place) dx_stride = network.first.input;
  }

  // The directions of a layer, with scratch in the arena.
  std::vector<BackwardPart<T>> layer(Index layer, const Queue& queue, Arena& arena) const {
    const Index B = args.batch, T_B = args.steps * B, width = network.output();
    const Index R = network.first.recurrent(), H = network.first.hidden, I = network.first.input;
    T* between[2] = {};  // dL/dy of the layers below the last, in turn in one of two arrays
    for (T*& array : between) array = network.layers > 1 ? arena.take<T>(T_B * width) : nullptr;
    T* const dx_copy = args.dx && !dx_in_place ? arena.take<T>(T_B * I) : nullptr;
    const auto output = [&](Index of) {
      return of + 1 == network.layers ? args.y : contiguous<const T>(reserve.output(of), B, width);
    };
    const Rows<const T> dy =
        layer + 1 == network.layers ? args.dy : contiguous<const T>(between[(layer + 1) % 2], B, width);
    std::vector<BackwardPart<T>> directions(static_cast<std::size_t>(network.directions));
    for (Index direction = 0; direction < network.directions; ++direction) {
      const Index number = layer * network.directions + direction, states = number * B;
      BackwardPart<T>& part = directions[static_cast<std::size_t>(direction)];
      describe_part(part, network, args.parameters, args, layer, direction, reserve.dropout_key());
      part.gradients = part_of<LayerArrays<T>>(network, args.gradients, number);
      part.add = args.add;
      if (layer == 0) {
        part.dx = args.tokens || !args.dx ? nullptr : dx_in_place ? args.dx.data : dx_copy;
        part.dx_stride = dx_stride;
      } else {
        part.x = output(layer - 1);
        part.dx = between[layer % 2];
        part.dx_stride = width;
      }
      part.add_dx = direction > 0;
      part.y = columns_from(output(layer), direction * R);
      part.dy = columns_from(dy, direction * R);
      part.h0 = offset(args.h0, states * R);
      part.c0 = offset(args.c0, states * H);
      part.dh_n = offset(args.dh_n, states * R);
      part.dc_n = offset(args.dc_n, states * H);
      part.dh0 = offset(args.dh0, states * R);
      part.dc0 = offset(args.dc0, states * H);
      part.reserve = reserve.part(number);
      part.layout(arena, queue);
    }
    return directions;
  }

  // What is left to do on the dx of a layer: the mask of the layer below, zeros at padding (whatever the
  // weights), its own rows.
  void finish_dx(const Queue& queue, Index layer, const BackwardPart<T>& part) const {
    if (!part.dx) return;
    if (!part.x_mask && (layer > 0 || (dx_in_place && !args.lengths))) return;
    const Rows<T> flat{part.dx, args.batch * part.dx_stride, part.dx_stride};
    copy_rows<T>(queue, part.walk, {flat.data, flat.time_stride, flat.batch_stride}, part.shape.input,
                 part.x_mask, layer > 0 ? flat : args.dx);
  }
};

}  // namespace

template <class T>
void backward(Stream stream, const Network& network, const BackwardArguments<T>& args,
              const Reserve<T>& reserve, const Options& options) {
  const BackwardCall<T> call(network, args, reserve);
  Request request = request_for(network, args, options);
  request.training = true;
  request.backward_wish = options.wish;
  const Plan plan = make_plan(request, current_limits());
  const Queue queue(stream, plan);
  const CublasScope cublas(stream);
  const Memory scratch(most_scratch(call, queue), stream);
  for (Index layer = network.layers; layer-- > 0;) {
    Arena arena(scratch.get());
    const std::vector<BackwardPart<T>> directions = call.layer(layer, queue, arena);
    run_layer(queue, request, directions);
    for (const BackwardPart<T>& part : directions) part.input_gradient(queue);
    call.finish_dx(queue, layer, directions.front());
  }
}

template void backward(Stream, const Network&, const BackwardArguments<float>&, const Reserve<float>&,
                       const Options&);
template void backward(Stream, const Network&, const BackwardArguments<double>&, const Reserve<double>&,
                       const Options&);
template void backward(Stream, const Network&, const BackwardArguments<half_t>&, const Reserve<half_t>&,
                       const Options&);
template void backward(Stream, const Network&, const BackwardArguments<bfloat16_t>&,
                       const Reserve<bfloat16_t>&, const Options&);

}  // namespace fastrnn::cuda
