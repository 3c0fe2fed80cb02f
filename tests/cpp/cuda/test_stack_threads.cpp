// Built with ThreadSanitizer alone, which ends the program with an error if it has found a race: whole calls,
// in which kernels hand each other global memory and change states in place.  Results are checked elsewhere.
#include <cmath>
#include <vector>

#include "check.h"
#include "cuda/plan.h"
#include "cuda/stack.h"
#include "device_array.h"

using namespace fastrnn;
using Array = cuda::DeviceArray<float>;

namespace {

const Cell cells[] = {Cell::lstm, Cell::gru, Cell::rnn};

Array some(Index count) { return Array(std::vector<double>(static_cast<std::size_t>(count), 0.1)); }

struct Problem {
  Network network;
  Index batch = 2, steps = 4;  // both buffers of h, and both phases of what signals them
  std::vector<Array> parameters;
  std::vector<const float*> pointers;
  Array x;

  explicit Problem(Cell cell, Index hidden = 20, double noise = 0) : x(some(steps * batch * 3)) {
    network.first.cell = cell;
    network.recurrent_dropout = network.zoneout_h = noise;
    network.zoneout_c = cell == Cell::lstm ? noise : 0;
    network.first.input = 3;
    network.first.hidden = hidden;
    for (const Index size : network.parameter_sizes()) {
      parameters.push_back(some(size));
      pointers.push_back(parameters.back().data());
    }
  }
  void check_finite(const Array& array) const {
    for (const double value : array.values()) CHECK(std::isfinite(value));
  }
};

void check_calls(const cuda::Wish& wish, Index hidden = 20, double noise = 0) {
  cuda::Options options;
  options.wish = wish;
  if (wish.strategy != cuda::Strategy::step) options.products = cuda::Products::bf16x3;  // or H is too small
  for (const Cell cell : cells) {
    const Problem p(cell, hidden, noise);
    const Network& n = p.network;
    cuda::Request request;
    request.network = n;
    request.steps = p.steps;
    request.batch = p.batch;
    request.training = true;
    request.wish = request.backward_wish = wish;
    request.products = options.products;
    const cuda::Plan plan = cuda::make_plan(request, cuda::current_limits());
    CHECK(plan.forward.strategy == wish.strategy && plan.backward.strategy == wish.strategy);
    const Index states = p.batch * n.first.hidden, outputs = p.steps * states;
    const cuda::DeviceList<Index> lengths({4, 3});
    const cuda::DeviceList<std::uint8_t> reset({0, 0, 1, 0, 0, 0, 0, 0});
    const Array h0 = some(states), c0 = some(states), y(outputs), dy = some(outputs), h_n(states),
                c_n(states), dx(p.steps * p.batch * n.first.input), dh0(states), dc0(states);
    std::vector<Array> gradients;
    for (const Index size : n.parameter_sizes()) gradients.push_back(some(size));

    const auto inputs = [&](auto& args) {
      args.steps = p.steps;
      args.batch = p.batch;
      args.x = contiguous<const float>(p.x.data(), p.batch, n.first.input);
      args.h0 = h0.data();
      args.c0 = cell == Cell::lstm ? c0.data() : nullptr;
      args.lengths = lengths.data();
      args.reset = reset.data();
    };
    ForwardArguments<float> forward;
    inputs(forward);
    forward.y = contiguous(y.data(), p.batch, n.output());
    forward.h_n = h_n.data();
    forward.c_n = cell == Cell::lstm ? c_n.data() : nullptr;
    cuda::Reserve<float> reserve;
    cuda::forward<float>({}, n, p.pointers, forward, &reserve, options);

    BackwardArguments<float> backward;
    inputs(backward);
    backward.parameters = p.pointers;
    for (const Array& g : gradients) backward.gradients.push_back(g.data());
    backward.y = contiguous<const float>(y.data(), p.batch, n.output());
    backward.dy = contiguous<const float>(dy.data(), p.batch, n.output());
    backward.dx = contiguous(dx.data(), p.batch, n.first.input);
    backward.dh0 = dh0.data();
    backward.dc0 = cell == Cell::lstm ? dc0.data() : nullptr;
    cuda::backward<float>({}, n, backward, reserve, options);
    p.check_finite(y);
    p.check_finite(dx);
  }
}

}  // namespace

// Step by step, and in persistent kernels of one CTA, two, and four: of so many units that each has some.
TEST(calls_have_no_races) {
  check_calls({cuda::Strategy::step, 0, 0, {}});
  check_calls({cuda::Strategy::cta, 1, 8, {}});
  check_calls({cuda::Strategy::cluster, 2, 8, {}});
  check_calls({cuda::Strategy::cluster, 4, 8, {}}, 50);
}

TEST(calls_with_recurrent_dropout_and_zoneout_have_no_races) {
  check_calls({cuda::Strategy::step, 0, 0, {}}, 20, 0.5);
}

TEST(streams_have_no_races) {
  for (const Cell cell : cells) {
    const Problem p(cell);
    cuda::Streams<float> streams({}, p.network, p.pointers, p.batch);
    for (Index t = 0; t < p.steps; ++t) streams.step({}, p.x.data(), nullptr, nullptr, p.batch);
    CHECK(std::isfinite(streams.y()[0]));
  }
}
