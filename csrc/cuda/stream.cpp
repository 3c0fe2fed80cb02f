// Streams: state that stays on the device between calls.
#include "core/check.h"
#include "cuda/kernels/stream_step.h"
#include "cuda/sequence.h"

namespace fastrnn::cuda {

template <class T>
Streams<T>::Streams(Stream stream, const Network& network, std::vector<const T*> parameters, Index batch)
    : network_(network), parameters_(std::move(parameters)), batch_(batch) {
  FRNN_CHECK(network.directions == 1, "a stream has no future to run a reverse direction over");
  FRNN_CHECK(batch >= 1, "a stream needs at least one row");
  network.check_call(1, batch);
  refuse_in_graph(stream, "a stream cannot be made in a graph that is captured; make it before");
  const LayerShape& s = network.first;
  const auto layout = [&](Arena arena) {
    h_ = arena.take<T>(network.layers * batch * s.recurrent());
    c_ = s.cell == Cell::lstm ? arena.take<Compute<T>>(network.layers * batch * s.hidden) : nullptr;
    y_ = arena.take<T>(batch * s.recurrent());
    for (T*& array : between_) array = arena.take<T>(batch * s.recurrent());
    ticket_ = arena.take<std::uint32_t>(1);
    return arena.used();
  };
  const std::size_t bytes = layout(Arena());
  layout(Arena(memory_.reserve(bytes, stream)));
  set_bytes(memory_.get(), 0, bytes, stream);
}

template <class T>
void Streams<T>::step(Stream stream, const T* x, const std::int64_t* tokens, const Index* rows, Index count,
                      const Options& options) {
  FRNN_CHECK(count >= 0 && count <= batch_, "a step has at most as many rows as the stream");
  if (count == 0) return;
  ForwardArguments<T> args;
  args.steps = 1;
  args.batch = count;
  args.x = contiguous(x, count, network_.first.input);
  args.tokens = tokens;
  args.y = contiguous(y_, count, network_.first.recurrent());
  args.state_rows = rows;
  args.state_batch = batch_;
  args.h0 = args.h_n = h_;
  Request request = request_for(network_, args, options);
  request.stream = true;
  if (make_plan(request, current_limits()).stream_kernel) {
    if (synchronous()) check_numbers(stream, network_, args);
    if (synchronous() && rows) check_rows(stream, rows, count, batch_);
    const Index values = count * network_.first.input;
    if (x && network_.layers == 1 && overlap<T>(x, values, y_, batch_ * network_.output())) {
      // What the last step returned is fed back, and the kernel writes it while it reads x.
      copy_on_device(between_[0], x, static_cast<std::size_t>(values) * sizeof(T), stream);
      x = between_[0];
    }
    step_kernels(stream, x, tokens, rows, count);
  } else {
    run_forward<T>(stream, network_, parameters_, args, c_, nullptr, options);
  }
}

// One kernel for each layer.
template <class T>
void Streams<T>::step_kernels(Stream stream, const T* x, const std::int64_t* tokens, const Index* rows,
                              Index count) {
  typename StreamStep<T>::Params p;
  p.count = count;
  p.rows = {rows, batch_};
  p.ticket = ticket_;
  p.keep_h = static_cast<Compute<T>>(network_.zoneout_h);
  p.keep_c = static_cast<Compute<T>>(network_.zoneout_c);
  for (Index layer = 0; layer < network_.layers; ++layer) {
    const LayerShape s = network_.shape(layer);
    const auto weights = part_of<LayerParameters<T>>(network_, parameters_, layer);
    p.cell = s.cell;
    p.nonlinearity = s.nonlinearity;
    p.units = s.hidden;
    p.input = s.input;
    p.x = layer == 0 ? x : p.y;
    p.tokens = layer == 0 ? tokens : nullptr;
    p.weight_ih = weights.weight_ih;
    p.weight_hh = weights.weight_hh;
    p.bias_ih = weights.bias_ih;
    p.bias_hh = weights.bias_hh;
    p.peephole = weights.weight_ch;
    p.h = h_ + layer * batch_ * s.hidden;
    p.c = offset(c_, layer * batch_ * s.hidden);
    p.y = layer + 1 == network_.layers ? y_ : between_[layer % 2];
    Grid grid;
    grid.blocks = static_cast<int>(StreamStep<T>::ctas(s.hidden));
    grid.shared = typename StreamStep<T>::Layout().shared.bytes();
    launch<StreamStep<T>>(stream, grid, p);
  }
}

template <class T>
void Streams<T>::run(Stream stream, const ForwardArguments<T>& sequence, const Options& options) {
  ForwardArguments<T> args = sequence;
  args.batch = batch_;
  args.h0 = args.h_n = h_;
  args.state_rows = nullptr;
  run_forward<T>(stream, network_, parameters_, args, c_, nullptr, options);
}

template class Streams<float>;
template class Streams<double>;
template class Streams<half_t>;
template class Streams<bfloat16_t>;

}  // namespace fastrnn::cuda
