// Forward over a stack: per direction of a layer one product for the input of all steps, then step by step
// the recurrent product and one pointwise kernel, or one kernel for all steps and both directions. The
// analogue of cpu/forward.cpp and ops/run.cpp.
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
class ForwardPart {
 public:
  using A = Compute<T>;

  LayerShape shape;
  LayerParameters<T> weights;
  Walk walk;
  Rows<const T> x;                       // [T,B,I]; not with tokens
  const std::int64_t* tokens = nullptr;  // [T,B] or null
  KeyedDropout x_mask;
  Noise noise;
  Rows<T> y;  // [T,B,R]
  // States. h_n may be h0, and null; with `cells_state` that is where c lives, instead of c0 and c_n.
  const T* h0 = nullptr;
  T* h_n = nullptr;
  const T* c0 = nullptr;
  T* c_n = nullptr;
  A* cells_state = nullptr;
  StateRows state_rows;
  typename Reserve<T>::Part reserve;  // of nulls in inference

  // Lays out scratch; with no memory it measures.
  void layout(Arena& arena, const Queue& queue) {
    const Index T_B = walk.steps * walk.batch, B = walk.batch, H = shape.hidden, R = shape.recurrent();
    const Index GH = shape.gate_rows();
    const bool lstm = shape.cell == Cell::lstm, full = shape.peephole == Peephole::full;
    Index flat_stride = 0;
    const bool copy_x = !tokens && (x_mask || !is_flat(x, walk.steps, B, shape.input, flat_stride));
    x_copy_ = copy_x ? arena.take<T>(T_B * shape.input) : nullptr;
    weight_ih_transposed_ =
        tokens && queue.plan().transpose_tokens ? arena.take<T>(GH * shape.input) : nullptr;
    // In training without narrowing, the gates of the reserve are computed in place. Inference has the same
    // stride, by which a library may choose how to multiply: so that both have the same bits.
    pre_stride_ = kNarrow<T> ? GH : std::max(GH, saved_gates(shape) * H);
    pre_ =
        !kNarrow<T> && reserve.gates ? reinterpret_cast<A*>(reserve.gates) : arena.take<A>(T_B * pre_stride_);
    recurrent_ = queue.plan().forward.strategy == Strategy::step ? arena.take<A>(B * GH) : nullptr;
    h_ = h_n && !state_rows.rows ? h_n : arena.take<T>(B * R);
    h_read_ = noise.drops_h ? arena.take<T>(B * R) : h_;
    if (lstm) {
      if (state_rows.rows || !c_in_place()) {
        c_ = arena.take<A>(B * H);
      } else {
        c_ = cells_state ? cells_state : reinterpret_cast<A*>(c_n);
      }
    }
    inner_ =
        shape.projection || (shape.cell == Cell::gru && !shape.reset_after) ? arena.take<T>(B * H) : nullptr;
    projected_ = shape.projection ? arena.take<A>(B * R) : nullptr;
    peephole_sums_ = full ? arena.take<A>(2 * B * H) : nullptr;
    new_cells_ = full ? arena.take<A>(B * H) : nullptr;
    cell_operand_ = full ? arena.take<T>(B * H) : nullptr;
    split_ = tokens ? nullptr : arena.take<char>(queue.split_bytes<T>(T_B, GH, shape.input));
  }

  // What comes before the steps, and after them.
  void begin(const Queue& queue) const {
    input_product(queue);
    enter(queue);
  }
  void end(const Queue& queue) const { leave(queue); }

  void run(const Queue& queue) const {
    begin(queue);
    for (Index step = 0; step < walk.steps; ++step) {
      switch (shape.cell) {
        case Cell::lstm: lstm_step(queue, step); break;
        case Cell::gru: gru_step(queue, step); break;
        case Cell::rnn: elman_step(queue, step); break;
      }
    }
    end(queue);
  }

  // The steps as a persistent kernel takes them.
  PersistentForwardPart<T> steps() const {
    PersistentForwardPart<T> p;
    p.walk = walk;
    p.weight_hh = weights.weight_hh;
    p.bias_ih = weights.bias_ih;
    p.bias_hh = weights.bias_hh;
    p.peephole = weights.weight_ch;
    p.input = pre_;
    p.input_stride = pre_stride_;
    p.y = y;
    p.h = h_;
    p.c = c_;
    p.gates = reserve.gates;
    p.cells = reserve.cells;
    return p;
  }

 private:
  // Can c be kept where the caller has it?
  bool c_in_place() const { return cells_state || (!kNarrow<T> && c_n); }

  void input_product(const Queue& queue) const {
    const Index rows = walk.steps * walk.batch, I = shape.input, GH = shape.gate_rows();
    if (tokens) {
      if (weight_ih_transposed_) {
        typename Transpose<T>::Params p;
        p.rows = GH;
        p.columns = I;
        p.from = weights.weight_ih;
        p.to = weight_ih_transposed_;
        queue.run_tiles<Transpose<T>>(Transpose<T>::tiles(GH, I), p);
      }
      typename GatherTokens<T>::Params p;
      p.tokens = tokens;
      p.steps = walk.steps;
      p.batch = walk.batch;
      p.columns = GH;
      p.vocabulary = I;
      p.weight = weight_ih_transposed_ ? weight_ih_transposed_ : weights.weight_ih;
      p.token_stride = weight_ih_transposed_ ? GH : 1;
      p.column_stride = weight_ih_transposed_ ? 1 : I;
      p.to = pre_;
      p.to_stride = pre_stride_;
      queue.run<GatherTokens<T>>(walk.steps, walk.batch, GH, p);
      return;
    }
    queue.product<T>(rows, GH, I, input_operand(queue, walk, x, I, x_mask, x_copy_),
                     transposed(weights.weight_ih, I), pre_, pre_stride_, split_);
  }

  template <class From, class To>
  void copy_state(const Queue& queue, const From* from, To* to, Index width, StateRows from_rows,
                  StateRows to_rows, bool entering) const {
    typename CopyState<From, To>::Params p;
    p.walk = walk;
    p.width = width;
    p.from = from;
    p.to = to;
    p.from_rows = from_rows;
    p.to_rows = to_rows;
    p.entering = entering;
    queue.run<CopyState<From, To>>(walk.batch, width, p);
  }

  // The state that enters the first step.
  void enter(const Queue& queue) const {
    const Index H = shape.hidden, R = shape.recurrent();
    copy_state(queue, h0, h_, R, state_rows, {}, true);
    if (noise.drops_h) {
      copy_rows<T>(queue, {nullptr, nullptr, 1, walk.batch, false}, contiguous<const T>(h_, walk.batch, R), R,
                   {noise.recurrent, noise.key}, contiguous(h_read_, walk.batch, R));
    }
    if (shape.cell != Cell::lstm) return;
    if (cells_state) {
      copy_state<A, A>(queue, cells_state, c_, H, state_rows, {}, true);
    } else {
      copy_state<T, A>(queue, c0, c_, H, state_rows, {}, true);
    }
    if (cell_operand_) copy_state<A, T>(queue, c_, cell_operand_, H, {}, {}, false);
  }

  // The state that has left the last step, where it is not yet where it shall be.
  void leave(const Queue& queue) const {
    const Index H = shape.hidden, R = shape.recurrent();
    if (h_n && h_ != h_n) copy_state(queue, static_cast<const T*>(h_), h_n, R, {}, state_rows, false);
    if (shape.cell != Cell::lstm) return;
    if (cells_state) {
      if (c_ != cells_state) copy_state<A, A>(queue, c_, cells_state, H, {}, state_rows, false);
    } else if (c_n && static_cast<void*>(c_) != c_n) {
      copy_state<A, T>(queue, c_, c_n, H, {}, state_rows, false);
    }
  }

  // recurrent_ = h W_hh^T, all gates or the first ones; h with its mask.
  void recurrent_product(const Queue& queue, Index columns) const {
    const Index R = shape.recurrent();
    queue.step_product<T>(walk.batch, columns, R, plain(h_read_, R), transposed(weights.weight_hh, R),
                          recurrent_, shape.gate_rows());
  }

  Sums<T> sums() const {
    Sums<T> s;
    s.input = pre_;
    s.input_stride = pre_stride_;
    s.recurrent = recurrent_;
    s.bias_ih = weights.bias_ih;
    s.bias_hh = weights.bias_hh;
    return s;
  }

  void lstm_step(const Queue& queue, Index step) const {
    const Index B = walk.batch, H = shape.hidden, R = shape.recurrent();
    recurrent_product(queue, shape.gate_rows());
    auto p = step_params<LstmForward<T>>(*this, step, H);
    p.sums = sums();
    p.state = c_;
    if (shape.projection) {
      p.projected = inner_;
    } else {
      p.hidden = {y, h_, h_read_};
    }
    p.gates = reserve.gates;
    p.cells = reserve.cells;
    if (shape.peephole == Peephole::full) {
      p.peephole_sums = peephole_sums_;
      p.new_cells = new_cells_;
      p.cell_operand = cell_operand_;
      p.phase = LstmPhase::cell;
      queue.step_product<T>(B, 2 * H, H, plain(cell_operand_, H), transposed(weights.weight_ch, H),
                            peephole_sums_, 2 * H);
      queue.run<LstmForward<T>>(B, H, p);
      p.phase = LstmPhase::output;
      queue.step_product<T>(B, H, H, plain(cell_operand_, H), transposed(weights.weight_ch + 2 * H * H, H),
                            peephole_sums_, H);
    } else if (shape.peephole == Peephole::diagonal) {
      p.peephole = weights.weight_ch;
    }
    queue.run<LstmForward<T>>(B, H, p);
    if (!shape.projection) return;
    queue.step_product<T>(B, R, H, plain(inner_, H), transposed(weights.weight_hr, H), projected_, R);
    auto q = step_params<LstmProject<T>>(*this, step, R);
    q.product = projected_;
    q.hidden = {y, h_, h_read_};
    queue.run<LstmProject<T>>(B, R, q);
  }

  void gru_step(const Queue& queue, Index step) const {
    const Index B = walk.batch, H = shape.hidden;
    auto p = step_params<GruForward<T>>(*this, step, H);
    p.sums = sums();
    p.hidden = {y, h_, h_read_};
    p.gates = reserve.gates;
    if (shape.reset_after) {
      recurrent_product(queue, 3 * H);
    } else {
      recurrent_product(queue, 2 * H);
      p.phase = GruPhase::reset;
      p.reset_h = inner_;
      queue.run<GruForward<T>>(B, H, p);
      p.phase = GruPhase::candidate;
      queue.step_product<T>(B, H, H, plain(inner_, H), transposed(weights.weight_hh + 2 * H * H, H),
                            recurrent_ + 2 * H, 3 * H);
    }
    queue.run<GruForward<T>>(B, H, p);
  }

  void elman_step(const Queue& queue, Index step) const {
    recurrent_product(queue, shape.hidden);
    auto p = step_params<ElmanForward<T>>(*this, step, shape.hidden);
    p.nonlinearity = shape.nonlinearity;
    p.sums = sums();
    p.hidden = {y, h_, h_read_};
    queue.run<ElmanForward<T>>(walk.batch, shape.hidden, p);
  }

  T* x_copy_ = nullptr;                // [T,B,I]: x as flat rows, masked
  T* weight_ih_transposed_ = nullptr;  // (I, G*H), tokens
  A* pre_ = nullptr;                   // W_ih x: [T,B] rows of G*H, pre_stride_ apart
  Index pre_stride_ = 0;
  A* recurrent_ = nullptr;      // [B,G*H]: W_hh h
  T* h_ = nullptr;              // [B,R]: the state between steps
  T* h_read_ = nullptr;         // [B,R]: the same as W_hh reads it, or h_
  A* c_ = nullptr;              // [B,H]
  T* inner_ = nullptr;          // [B,H]: h before its projection, or r h
  A* projected_ = nullptr;      // [B,P]
  A* peephole_sums_ = nullptr;  // full peephole: [B,2,H], then [B,H]
  A* new_cells_ = nullptr;      // [B,H]
  T* cell_operand_ = nullptr;   // [B,H]
  void* split_ = nullptr;
};

// All steps of a layer in one launch.
template <class T>
void run_persistent(const Queue& queue, const Request& request,
                    const std::vector<ForwardPart<T>>& directions) {
  run_side_by_side(queue, directions, [](const ForwardPart<T>& part, const Queue& on) { part.begin(on); });
  launch_persistent<ForwardPass, T>(queue.stream(), request, queue.plan().forward.launch, directions);
  for (const ForwardPart<T>& part : directions) part.end(queue);
}

template <class T>
void run_layer(const Queue& queue, const Request& request, const std::vector<ForwardPart<T>>& directions) {
  if constexpr (!std::is_same_v<T, double>) {
    if (queue.plan().forward.strategy != Strategy::step) return run_persistent(queue, request, directions);
  }
  run_directions(queue, directions);
}

// The arguments of a call, and its layers.
template <class T>
struct ForwardCall {
  const Network& network;
  const std::vector<const T*>& parameters;
  const ForwardArguments<T>& args;
  Compute<T>* cells;    // [parts, state_batch, H], or null: as run_forward has it
  Reserve<T>* reserve;  // or null

  Index state_batch() const { return args.state_rows ? args.state_batch : args.batch; }
  bool has_masks() const {
    return reserve && (network.has_state_noise() || (network.dropout > 0 && network.layers > 1));
  }

  void check(Stream stream) const {
    network.check_call(args.steps, args.batch);
    FRNN_CHECK(static_cast<Index>(parameters.size()) == network.parts() * network.parameters_per_part(),
               "a parameter is missing or too many");
    if (!synchronous()) return;
    check_numbers(stream, network, args);
    if (args.state_rows) check_rows(stream, args.state_rows, args.batch, state_batch());
  }

  // The directions of a layer, with scratch in the arena.
  std::vector<ForwardPart<T>> layer(Index layer, const Queue& queue, Arena& arena) const {
    // In inference the layers below the last write in turn to one of two arrays.
    T* between[2] = {};
    for (Index i = 0; i < std::min<Index>(2, reserve ? 0 : network.layers - 1); ++i) {
      between[i] = arena.take<T>(args.steps * args.batch * network.output());
    }
    const auto output = [&](Index of) {
      if (of + 1 == network.layers) return args.y;
      return contiguous(reserve ? reserve->output(of) : between[of % 2], args.batch, network.output());
    };
    const Index R = network.first.recurrent(), H = network.first.hidden;
    std::vector<ForwardPart<T>> directions(static_cast<std::size_t>(network.directions));
    for (Index direction = 0; direction < network.directions; ++direction) {
      const Index number = layer * network.directions + direction, states = number * state_batch();
      ForwardPart<T>& part = directions[static_cast<std::size_t>(direction)];
      describe_part(part, network, parameters, args, layer, direction,
                    reserve ? reserve->dropout_key() : nullptr);
      if (layer > 0) {
        const Rows<T> below = output(layer - 1);
        part.x = {below.data, below.time_stride, below.batch_stride};
      }
      part.y = columns_from(output(layer), direction * R);
      part.h0 = offset(args.h0, states * R);
      part.h_n = offset(args.h_n, states * R);
      part.c0 = offset(args.c0, states * H);
      part.c_n = offset(args.c_n, states * H);
      part.cells_state = offset(cells, states * H);
      part.state_rows = {args.state_rows, state_batch()};
      if (reserve) part.reserve = reserve->part(number);
      part.layout(arena, queue);
    }
    return directions;
  }
};

}  // namespace

template <class T>
void run_forward(Stream stream, const Network& network, const std::vector<const T*>& parameters,
                 const ForwardArguments<T>& args, Compute<T>* cells, Reserve<T>* reserve,
                 const Options& options) {
  const ForwardCall<T> call{network, parameters, args, cells, reserve};
  call.check(stream);
  Request request = request_for(network, args, options);
  request.training = reserve != nullptr;
  request.wish = options.wish;
  const Plan plan = make_plan(request, current_limits());
  const Queue queue(stream, plan);
  const CublasScope cublas(stream);

  if (reserve) reserve->layout(stream, network, args.steps, args.batch);
  if (call.has_masks()) {
    Grid one;
    one.blocks = 1;
    launch<BeginDropout>(stream, one, {args.seed, args.call, options.calls, reserve->dropout_key()});
  }
  const Memory scratch(most_scratch(call, queue), stream);
  for (Index layer = 0; layer < network.layers; ++layer) {
    Arena arena(scratch.get());
    run_layer(queue, request, call.layer(layer, queue, arena));
  }
}

template <class T>
void forward(Stream stream, const Network& network, const std::vector<const T*>& parameters,
             const ForwardArguments<T>& args, Reserve<T>* reserve, const Options& options) {
  run_forward<T>(stream, network, parameters, args, nullptr, reserve, options);
}

#define FRNN_INSTANTIATE(T)                                                                               \
  template void run_forward(Stream, const Network&, const std::vector<const T*>&,                         \
                            const ForwardArguments<T>&, Compute<T>*, Reserve<T>*, const Options&);        \
  template void forward(Stream, const Network&, const std::vector<const T*>&, const ForwardArguments<T>&, \
                        Reserve<T>*, const Options&);
FRNN_INSTANTIATE(float)
FRNN_INSTANTIATE(double)
FRNN_INSTANTIATE(half_t)
FRNN_INSTANTIATE(bfloat16_t)
#undef FRNN_INSTANTIATE

}  // namespace fastrnn::cuda
