#include <vector>

#include "core/check.h"
#include "cuda/sequence.h"

namespace fastrnn::cuda {
namespace {

std::vector<Index> on_host(Stream stream, const Index* numbers, Index count) {
  std::vector<Index> copy(static_cast<std::size_t>(count));
  copy_to_host(copy.data(), numbers, copy.size() * sizeof(Index), stream);
  return copy;
}

}  // namespace

template <class T>
void check_numbers(Stream stream, const Network& network, const Arguments<T>& args) {
  if (capturing(stream)) return;
  std::vector<Index> lengths(static_cast<std::size_t>(args.batch), args.steps);
  if (args.lengths) lengths = on_host(stream, args.lengths, args.batch);
  for (const Index length : lengths) {
    FRNN_CHECK(length >= 0 && length <= args.steps, "lengths must be from 0 to T");
  }
  if (!args.tokens) return;
  const std::vector<Index> tokens = on_host(stream, args.tokens, args.steps * args.batch);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    // Past a row's length any token may stand.
    if (static_cast<Index>(i) / args.batch >= lengths[i % lengths.size()]) continue;
    FRNN_CHECK(tokens[i] >= 0 && tokens[i] < network.first.input, "x holds a token out of range");
  }
}

void check_rows(Stream stream, const Index* rows, Index count, Index batch) {
  if (capturing(stream)) return;
  std::vector<bool> seen(static_cast<std::size_t>(batch));
  for (const Index row : on_host(stream, rows, count)) {
    FRNN_CHECK(row >= 0 && row < batch, "rows holds an index out of range");
    FRNN_CHECK(!seen[static_cast<std::size_t>(row)], "rows holds an index twice");
    seen[static_cast<std::size_t>(row)] = true;
  }
}

template void check_numbers(Stream, const Network&, const Arguments<float>&);
template void check_numbers(Stream, const Network&, const Arguments<double>&);
template void check_numbers(Stream, const Network&, const Arguments<half_t>&);
template void check_numbers(Stream, const Network&, const Arguments<bfloat16_t>&);

}  // namespace fastrnn::cuda
