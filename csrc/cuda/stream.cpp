// Streams: state that stays on the device between calls.
#include "core/check.h"
#include "cuda/sequence.h"

namespace fastrnn::cuda {

template <class T>
Streams<T>::Streams(Stream stream, const Network& network, std::vector<const T*> parameters, Index batch)
    : network_(network), parameters_(std::move(parameters)), batch_(batch) {
  FRNN_CHECK(network.directions == 1, "a stream has no future to run a reverse direction over");
  FRNN_CHECK(batch >= 1, "a stream needs at least one row");
  network.check_call(1, batch);
  const LayerShape& s = network.first;
  const auto layout = [&](Arena arena) {
    h_ = arena.take<T>(network.layers * batch * s.recurrent());
    c_ = s.cell == Cell::lstm ? arena.take<Compute<T>>(network.layers * batch * s.hidden) : nullptr;
    y_ = arena.take<T>(batch * s.recurrent());
    return arena.used();
  };
  const std::size_t bytes = layout(Arena());
  layout(Arena(memory_.reserve(bytes, stream)));
  set_bytes(memory_.get(), 0, bytes, stream);
}

template <class T>
void Streams<T>::step(Stream stream, const T* x, const std::int64_t* tokens, const Index* rows, Index count,
                      const Options& options) {
  ForwardArguments<T> args;
  args.steps = 1;
  args.batch = count;
  args.x = contiguous(x, count, network_.first.input);
  args.tokens = tokens;
  args.y = contiguous(y_, count, network_.first.recurrent());
  args.state_rows = rows;
  args.state_batch = batch_;
  args.h0 = args.h_n = h_;
  run_forward<T>(stream, network_, parameters_, args, c_, nullptr, options);
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
