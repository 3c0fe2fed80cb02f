// Whole networks through csrc/ops, in double: the gradient against a finite difference along one direction of
// all inputs at once, for every cell and option, instruction set and way of dividing the work. Arrays are
// exactly as long as they must be. Offsets beyond 2^31 elements. Streams against whole calls.
#include <sys/mman.h>

#include <cstring>
#include <random>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "networks.h"
#include "ops/network.h"
#include "threads.h"

using namespace fastrnn;

namespace {

using Values = std::vector<double>;

Values random(Index n, unsigned seed) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<double> uniform(-0.5, 0.5);
  Values values(static_cast<std::size_t>(n));
  for (double& value : values) value = uniform(bits);
  return values;
}

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// a + e d
Values moved(const Values& a, const Values& d, double e) {
  Values b = a;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] += e * d[i];
  return b;
}

// Everything a call reads that has a gradient.
struct Inputs {
  Values x, h0, c0;
  std::vector<Values> parameters;

  std::vector<const double*> pointers() const {
    std::vector<const double*> all;
    for (const Values& p : parameters) all.push_back(p.data());
    return all;
  }
};

struct Case {
  Network network;
  Index steps, batch;
  std::vector<Index> lengths;       // empty: all of them
  std::vector<std::uint8_t> reset;  // empty: none

  Index states() const { return network.parts() * batch; }
  Inputs random_inputs(unsigned seed) const {
    const LayerShape& s = network.first;
    Inputs in{random(steps * batch * s.input, seed),
              random(states() * s.recurrent(), seed + 1),
              random(states() * s.hidden, seed + 2),
              {}};
    // Uniform +-1/sqrt(H): with larger weights long sequences are chaotic, and no finite difference is right.
    for (const Index size : network.parameter_sizes()) {
      in.parameters.push_back(random(size, ++seed + 2));
      for (double& w : in.parameters.back()) w *= 2 / std::sqrt(static_cast<double>(s.hidden));
    }
    return in;
  }
  template <class A>
  void describe(A& args, const Inputs& in) const {
    args.steps = steps;
    args.batch = batch;
    args.x = {in.x.data(), batch * network.first.input, network.first.input};
    args.h0 = in.h0.data();
    args.c0 = in.c0.data();
    args.lengths = lengths.empty() ? nullptr : lengths.data();
    args.reset = reset.empty() ? nullptr : reset.data();
    args.seed = 7;
  }
};

struct Outputs {
  Values y, h_n, c_n;
};

Outputs run(const Case& c, const Inputs& in, Reserve<double>* reserve) {
  const Index width = c.network.output();
  Outputs out{Values(static_cast<std::size_t>(c.steps * c.batch * width)), Values(in.h0.size()),
              Values(in.c0.size())};
  Weights<double> weights(c.network);
  weights.pack(in.pointers());
  ForwardArguments<double> args;
  c.describe(args, in);
  args.y = {out.y.data(), c.batch * width, width};
  args.h_n = out.h_n.data();
  args.c_n = out.c_n.data();
  Scratch scratch;
  forward(weights, args, reserve, scratch);
  return out;
}

void check_gradient(const Case& c) {
  const bool lstm = c.network.first.cell == Cell::lstm;
  const Index width = c.network.output();
  const Inputs in = c.random_inputs(1), direction = c.random_inputs(100);
  const Values dy = random(c.steps * c.batch * width, 200),
               dh_n = random(static_cast<Index>(in.h0.size()), 201),
               dc_n = random(static_cast<Index>(in.c0.size()), 202);
  const auto loss = [&](const Outputs& out) {
    return dot(out.y, dy) + dot(out.h_n, dh_n) + (lstm ? dot(out.c_n, dc_n) : 0);
  };

  Reserve<double> reserve;
  const Outputs out = run(c, in, &reserve);
  if (c.network.dropout == 0 && !c.network.has_state_noise()) CHECK(out.y == run(c, in, nullptr).y);

  Inputs gradient = in;  // for the sizes
  BackwardArguments<double> args;
  c.describe(args, in);
  args.parameters = in.pointers();
  args.y = {out.y.data(), c.batch * width, width};
  args.dy = {dy.data(), c.batch * width, width};
  args.dh_n = dh_n.data();
  args.dc_n = dc_n.data();
  args.dx = {gradient.x.data(), c.batch * c.network.first.input, c.network.first.input};
  args.dh0 = gradient.h0.data();
  args.dc0 = gradient.c0.data();
  for (Values& g : gradient.parameters) args.gradients.push_back(g.data());
  Scratch scratch;
  backward(c.network, args, reserve, scratch);

  // Gates that are computed again have the same bits.
  Reserve<double> checkpointed(2);
  run(c, in, &checkpointed);
  const Inputs kept = gradient;
  backward(c.network, args, checkpointed, scratch);
  CHECK(gradient.x == kept.x && gradient.h0 == kept.h0 && gradient.parameters == kept.parameters);
  if (lstm) CHECK(gradient.c0 == kept.c0);

  double expected = dot(gradient.x, direction.x) + dot(gradient.h0, direction.h0);
  if (lstm) expected += dot(gradient.c0, direction.c0);
  for (std::size_t i = 0; i < gradient.parameters.size(); ++i) {
    expected += dot(gradient.parameters[i], direction.parameters[i]);
  }
  const double e = 1e-6;  // truncation e^2 and rounding eps / e are both about 1e-10 of the loss
  const auto at = [&](double step) {
    Inputs there{moved(in.x, direction.x, step),
                 moved(in.h0, direction.h0, step),
                 moved(in.c0, direction.c0, step),
                 {}};
    for (std::size_t i = 0; i < in.parameters.size(); ++i) {
      there.parameters.push_back(moved(in.parameters[i], direction.parameters[i], step));
    }
    Reserve<double> other;
    return loss(run(c, there, &other));
  };
  CHECK_NEAR((at(e) - at(-e)) / (2 * e), expected, 1e-7 * (1 + std::abs(expected)));
}

void for_every_isa(void (*body)()) {
  const cpu::Isa before = cpu::current_isa();
  for (const cpu::Isa isa : cpu::available_isas()) {
    cpu::set_isa(cpu::name(isa));
    body();
  }
  cpu::set_isa(cpu::name(before));
}

}  // namespace

TEST(gradients_of_whole_batches) {
  for_every_isa([] {
    for (const Network& n : networks()) check_gradient({n, 5, 3, {}, {}});
  });
}

TEST(gradients_with_lengths_and_resets) {
  for_every_isa([] {
    for (const Network& n : networks()) {
      Case c{n, 6, 5, {4, 0, 6, 1, 6}, std::vector<std::uint8_t>(30)};
      for (const std::size_t at : {0u, 7u, 11u, 14u, 29u}) c.reset[at] = 1;
      check_gradient(c);
    }
  });
}

TEST(gradients_with_recurrent_dropout_and_zoneout) {
  for_every_isa([] {
    for (const Network& n : noisy_networks()) {
      check_gradient({n, 5, 3, {}, {}});
      Case c{n, 6, 5, {4, 0, 6, 1, 6}, std::vector<std::uint8_t>(30)};
      for (const std::size_t at : {0u, 7u, 11u, 14u, 29u}) c.reset[at] = 1;
      check_gradient(c);
    }
  });
}

// Work worth several threads, by rows and by units, and several blocks of steps.
TEST(gradients_with_threads) {
  for (const int threads : {2, 3}) {
    const Threads allowed(threads);
    std::vector<Network> all = networks();
    for (const Network& n : noisy_networks()) all.push_back(n);
    for (Network n : all) {
      n.first.hidden = 130;
      check_gradient({n, 20, 3, {}, {}});
      n.first.hidden = 33;
      Case c{n, 60, 20, std::vector<Index>(20), {}};
      for (std::size_t b = 0; b < 20; ++b) c.lengths[b] = 60 - static_cast<Index>(b);
      check_gradient(c);
    }
  }
}

TEST(stream_equals_one_call) {
  std::vector<Network> all = networks();
  for (const Network& n : noisy_networks()) all.push_back(n);
  for (Network n : all) {
    n.directions = 1;
    const Case c{n, 7, 3, {}, {}};
    Inputs in = c.random_inputs(5);
    std::fill(in.h0.begin(), in.h0.end(), 0);
    std::fill(in.c0.begin(), in.c0.end(), 0);
    const Outputs whole = run(c, in, nullptr);
    auto weights = std::make_shared<Weights<double>>(n);
    weights->pack(in.pointers());
    Stream<double> stream(weights, 3);
    const Index width = n.output();
    for (Index t = 0; t < 7; ++t) {
      stream.step(in.x.data() + t * 3 * n.first.input, nullptr, nullptr, 3);
      CHECK(std::memcmp(stream.y(), whole.y.data() + t * 3 * width,
                        static_cast<std::size_t>(3 * width) * sizeof(double)) == 0);
    }
    CHECK(std::memcmp(stream.h(), whole.h_n.data(), whole.h_n.size() * sizeof(double)) == 0);
  }
}

// Rows of x and y that lie more than 2^31 elements apart. The memory is promised, not used: two pages of it
// are.
TEST(offsets_beyond_32_bits) {
  constexpr Index stride = (Index{1} << 31) + 24;
  constexpr std::size_t bytes = static_cast<std::size_t>(stride + 64) * sizeof(float);
  void* memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED);
  if (memory == MAP_FAILED) return;
  float* base = static_cast<float*>(memory);

  Network n;
  n.first.cell = Cell::gru;
  n.first.input = 3;
  n.first.hidden = 5;
  std::vector<std::vector<float>> values;
  std::vector<const float*> parameters;
  for (const Index size : n.parameter_sizes()) {
    const Values wide = random(size, static_cast<unsigned>(size));
    values.emplace_back(wide.begin(), wide.end());
  }
  for (const auto& v : values) parameters.push_back(v.data());
  Weights<float> weights(n);
  weights.pack(parameters);

  const float x[] = {0.1f, -0.2f, 0.3f, 0.4f, 0.5f, -0.6f};
  float near[10], h_n[5];
  std::memcpy(base, x, 3 * sizeof(float));
  std::memcpy(base + stride, x + 3, 3 * sizeof(float));
  ForwardArguments<float> args;
  args.steps = 2;
  args.batch = 1;
  args.h_n = h_n;
  args.x = {x, 3, 3};
  args.y = {near, 5, 5};
  Scratch scratch;
  forward<float>(weights, args, nullptr, scratch);
  args.x = {base, stride, 3};
  args.y = {base + 8, stride, 5};
  forward<float>(weights, args, nullptr, scratch);
  CHECK(std::memcmp(base + 8, near, 5 * sizeof(float)) == 0);
  CHECK(std::memcmp(base + 8 + stride, near + 5, 5 * sizeof(float)) == 0);
  munmap(memory, bytes);

  cpu::Sequence<float> s;
  s.batch = Index{1} << 20;
  s.shape.hidden = 1 << 12;
  CHECK(s.saved_at(9, 3, 5) * s.shape.hidden == 3 * (Index{1} << 32) + 5 * (Index{1} << 12));
}
