// What stack.h declares beside the calls: the reserve, and what a call would do.
#include "cuda/stack.h"

#include "core/buffers.h"
#include "cuda/cublas.h"
#include "cuda/sequence.h"

namespace fastrnn::cuda {

template <class T>
void Reserve<T>::layout(Stream stream, const Network& network, Index steps, Index batch) {
  steps_ = -1;  // belongs to no call, should memory run out on the way
  const auto layout = [&](Arena arena) {
    parts_.assign(static_cast<std::size_t>(network.parts()), Part{});
    outputs_.clear();
    const LayerShape& s = network.first;
    const Index units = steps * batch * s.hidden;
    for (Part& part : parts_) {
      if (saved_gates(s)) part.gates = arena.take<T>(units * saved_gates(s));
      if (s.cell == Cell::lstm) part.cells = arena.take<Compute<T>>(units);
    }
    for (Index layer = 0; layer + 1 < network.layers; ++layer)
      outputs_.push_back(arena.take<T>(steps * batch * network.output()));
    dropout_key_ = arena.take<std::uint64_t>(1);
    return arena.used();
  };
  bytes_ = layout(Arena());
  if (bytes_ > memory_.capacity()) {
    refuse_in_graph(
        stream,
        "what a training call saves for backward has no memory of this size yet, and a graph cannot "
        "make it; make an equal call before the capture");
    if (captured_) captured_before_.push_back(std::move(memory_));
    captured_ = false;
  }
  captured_ |= capturing(stream);
  layout(Arena(memory_.reserve(bytes_, stream)));
  network_ = network;
  steps_ = steps;
  batch_ = batch;
}

template <class T>
bool Reserve<T>::belongs_to(const Network& network, Index steps, Index batch) const {
  return steps == steps_ && batch == batch_ && network == network_;
}

template class Reserve<float>;
template class Reserve<double>;
template class Reserve<half_t>;
template class Reserve<bfloat16_t>;

std::map<std::string, std::string> explain(const Request& request) {
  std::map<std::string, std::string> words = describe(request, current_limits());
  words["library"] = describe_cublas();
  return words;
}

std::vector<PossibleLaunch> launches(const Request& request, bool backward) {
  return possible_launches(request, current_limits(), backward);
}

}  // namespace fastrnn::cuda
