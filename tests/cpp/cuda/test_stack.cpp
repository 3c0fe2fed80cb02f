// Whole networks on the emulated device against the CPU back end in double: every cell and option, element
// type, lengths, resets, tokens, dropout, strides, what may be absent; outputs between guards. Streams
// against whole calls.
#include <algorithm>
#include <random>

#include "check.h"
#include "cuda/stack.h"
#include "device_array.h"
#include "emulator/runtime_emulated.h"
#include "emulator/schedule.h"
#include "networks.h"
#include "ops/network.h"

using namespace fastrnn;
using cuda::DeviceArray;
using cuda::DeviceList;

namespace {

using Values = std::vector<double>;

// Values that every element type of the tests can hold, so that all compute on the same numbers.
Values random(Index n, unsigned seed, double scale = 1) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<double> uniform(-scale, scale);
  Values values(static_cast<std::size_t>(n));
  for (double& value : values) {
    value = static_cast<double>(widen(narrow<bfloat16_t>(static_cast<float>(uniform(bits)))));
  }
  return values;
}

struct Case {
  Network network;
  Index steps = 1, batch = 1;
  std::vector<Index> lengths = {};       // empty: all of them
  std::vector<std::uint8_t> reset = {};  // empty: none
  bool tokens = false;
  bool states = true;   // initial states, and gradients of final ones
  bool outputs = true;  // dy
  bool batch_first = false;
  Index pad = 0;  // elements between the rows of x, y and their gradients, which nobody may touch
  cuda::Products products = cuda::Products::automatic;

  template <class A>
  void describe(A& args) const {
    args.steps = steps;
    args.batch = batch;
    args.seed = 7;
    args.call = 3;
  }
};

// x, states, gradients and parameters of a call, as doubles.
struct Inputs {
  Values x, h0, c0, dy, dh_n, dc_n;
  std::vector<std::int64_t> tokens;
  std::vector<Values> parameters;

  explicit Inputs(const Case& c) {
    const Network& n = c.network;
    const Index rows = c.steps * c.batch, states = n.parts() * c.batch;
    x = random(rows * n.first.input, 1);
    h0 = random(states * n.first.recurrent(), 2);
    c0 = random(states * n.first.hidden, 3);
    dy = random(rows * n.output(), 4);
    dh_n = random(states * n.first.recurrent(), 5);
    dc_n = random(states * n.first.hidden, 6);
    for (Index i = 0; i < rows; ++i) tokens.push_back((i * i + 3) % n.first.input);
    unsigned seed = 10;
    for (const Index size : n.parameter_sizes()) {
      parameters.push_back(random(size, ++seed, 1 / std::sqrt(static_cast<double>(n.first.hidden))));
    }
    // No result may depend on what stands past a row's length.
    if (c.lengths.empty()) return;
    for (Index t = 0; t < c.steps; ++t) {
      for (Index b = 0; b < c.batch; ++b) {
        if (t < c.lengths[static_cast<std::size_t>(b)]) continue;
        const auto at = static_cast<std::size_t>(t * c.batch + b);
        tokens[at] = 1 << 30;
        fill(x, at, n.first.input);
        fill(dy, at, n.output());
      }
    }
  }
  static void fill(Values& rows, std::size_t row, Index width) {
    const auto first = rows.begin() + static_cast<std::ptrdiff_t>(row) * width;
    std::fill(first, first + width, std::nan(""));
  }
};

struct Outputs {
  Values y, inference_y, h_n, c_n, dx, dh0, dc0;
  std::vector<Values> gradients;
};

template <class T>
std::vector<const T*> pointers(const std::vector<std::vector<T>>& all) {
  std::vector<const T*> to;
  for (const auto& one : all) to.push_back(one.data());
  return to;
}

Outputs on_cpu(const Case& c, const Inputs& in) {
  const Network& n = c.network;
  const bool lstm = n.first.cell == Cell::lstm;
  Outputs out;
  out.y.resize(in.dy.size());
  out.inference_y.resize(in.dy.size());
  out.h_n.resize(in.h0.size());
  out.c_n.resize(in.c0.size());
  out.dx.resize(in.x.size());
  out.dh0.resize(in.h0.size());
  out.dc0.resize(in.c0.size());
  for (const Values& p : in.parameters) out.gradients.emplace_back(p.size());

  const auto inputs = [&](auto& args) {
    c.describe(args);
    args.x = contiguous(in.x.data(), c.batch, n.first.input);
    args.tokens = c.tokens ? in.tokens.data() : nullptr;
    args.h0 = c.states ? in.h0.data() : nullptr;
    args.c0 = c.states && lstm ? in.c0.data() : nullptr;
    args.lengths = c.lengths.empty() ? nullptr : c.lengths.data();
    args.reset = c.reset.empty() ? nullptr : c.reset.data();
  };
  ForwardArguments<double> forward_args;
  inputs(forward_args);
  forward_args.h_n = out.h_n.data();
  forward_args.c_n = out.c_n.data();
  Weights<double> weights(n);
  weights.pack(pointers(in.parameters));
  Reserve<double> reserve;
  Scratch scratch;
  forward_args.y = contiguous(out.inference_y.data(), c.batch, n.output());
  forward<double>(weights, forward_args, nullptr, scratch);
  forward_args.y = contiguous(out.y.data(), c.batch, n.output());
  forward<double>(weights, forward_args, &reserve, scratch);

  BackwardArguments<double> args;
  inputs(args);
  args.parameters = pointers(in.parameters);
  args.y = contiguous<const double>(out.y.data(), c.batch, n.output());
  if (c.outputs) args.dy = contiguous(in.dy.data(), c.batch, n.output());
  args.dh_n = c.states ? in.dh_n.data() : nullptr;
  args.dc_n = c.states && lstm ? in.dc_n.data() : nullptr;
  if (!c.tokens) args.dx = contiguous(out.dx.data(), c.batch, n.first.input);
  args.dh0 = out.dh0.data();
  args.dc0 = out.dc0.data();
  for (Values& g : out.gradients) args.gradients.push_back(g.data());
  backward<double>(n, args, reserve, scratch);
  return out;
}

// Rows of [T,B,width] as the case has them on the device: [B,T], with NaN between them.
struct Layout {
  const Case& c;
  Index width;

  Index stride() const { return width + c.pad; }
  Index time_stride() const { return c.batch_first ? stride() : c.batch * stride(); }
  Index batch_stride() const { return c.batch_first ? c.steps * stride() : stride(); }
  Index size() const { return c.steps * c.batch * stride(); }

  Values out(const Values& rows) const {
    Values to(static_cast<std::size_t>(size()), std::nan(""));
    for_rows([&](Index row, Index at) { std::copy_n(rows.begin() + row * width, width, to.begin() + at); });
    return to;
  }
  Values back(const Values& from) const {
    Values rows(static_cast<std::size_t>(c.steps * c.batch * width));
    for_rows([&](Index row, Index at) {
      std::copy_n(from.begin() + at, width, rows.begin() + row * width);
      for (Index i = 0; i < c.pad; ++i) CHECK(std::isnan(from[static_cast<std::size_t>(at + width + i)]));
    });
    return rows;
  }

 private:
  template <class Body>
  void for_rows(Body body) const {
    for (Index t = 0; t < c.steps; ++t) {
      for (Index b = 0; b < c.batch; ++b) body(t * c.batch + b, t * time_stride() + b * batch_stride());
    }
  }
};

template <class T>
Outputs on_device(const Case& c, const Inputs& in) {
  const Network& n = c.network;
  const bool lstm = n.first.cell == Cell::lstm;
  const cuda::Stream stream;
  const Layout in_rows{c, n.first.input}, out_rows{c, n.output()};
  const auto rows = [](T* data, const Layout& l) { return Rows<T>{data, l.time_stride(), l.batch_stride()}; };
  const auto constant = [](const Rows<T>& r) { return Rows<const T>{r.data, r.time_stride, r.batch_stride}; };
  const auto none = [](const Values& v) { return DeviceArray<T>(static_cast<Index>(v.size())); };

  const DeviceArray<T> x(in_rows.out(in.x)), h0(in.h0), c0(in.c0), dy(out_rows.out(in.dy)), dh_n(in.dh_n),
      dc_n(in.dc_n);
  const DeviceArray<T> y(out_rows.size()), inference_y(out_rows.size()),
      h_n = none(in.h0), c_n = none(in.c0), dx(in_rows.size()), dh0 = none(in.h0), dc0 = none(in.c0);
  const DeviceList<std::int64_t> tokens(in.tokens);
  const DeviceList<Index> lengths(c.lengths);
  const DeviceList<std::uint8_t> reset(c.reset);
  std::vector<DeviceArray<T>> parameters, gradients;
  std::vector<const T*> parameter_pointers;
  std::vector<T*> gradient_pointers;
  for (const Values& p : in.parameters) {
    parameters.emplace_back(p);
    gradients.push_back(none(p));
    parameter_pointers.push_back(parameters.back().data());
    gradient_pointers.push_back(gradients.back().data());
  }

  const auto inputs = [&](auto& args) {
    c.describe(args);
    args.x = constant(rows(x.data(), in_rows));
    args.tokens = c.tokens ? tokens.data() : nullptr;
    args.h0 = c.states ? h0.data() : nullptr;
    args.c0 = c.states && lstm ? c0.data() : nullptr;
    args.lengths = lengths.data();
    args.reset = reset.data();
  };
  cuda::Options options;
  options.products = c.products;
  ForwardArguments<T> forward_args;
  inputs(forward_args);
  forward_args.h_n = h_n.data();
  forward_args.c_n = lstm ? c_n.data() : nullptr;
  forward_args.y = rows(inference_y.data(), out_rows);
  cuda::forward<T>(stream, n, parameter_pointers, forward_args, nullptr, options);
  forward_args.y = rows(y.data(), out_rows);
  cuda::Reserve<T> reserve;
  cuda::forward<T>(stream, n, parameter_pointers, forward_args, &reserve, options);

  BackwardArguments<T> args;
  inputs(args);
  args.parameters = parameter_pointers;
  args.gradients = gradient_pointers;
  args.y = constant(rows(y.data(), out_rows));
  if (c.outputs) args.dy = constant(rows(dy.data(), out_rows));
  args.dh_n = c.states ? dh_n.data() : nullptr;
  args.dc_n = c.states && lstm ? dc_n.data() : nullptr;
  if (!c.tokens) args.dx = rows(dx.data(), in_rows);
  args.dh0 = dh0.data();
  args.dc0 = lstm ? dc0.data() : nullptr;
  cuda::backward<T>(stream, n, args, reserve, options);

  Outputs out;
  out.y = out_rows.back(y.values());
  out.inference_y = out_rows.back(inference_y.values());
  out.h_n = h_n.values();
  out.c_n = c_n.values();
  out.dx = in_rows.back(dx.values());
  out.dh0 = dh0.values();
  out.dc0 = dc0.values();
  for (const DeviceArray<T>& g : gradients) out.gradients.push_back(g.values());
  return out;
}

// max |a - b| against the size of b.
void check_close(const char* what, const Values& got, const Values& expected, double tolerance) {
  double largest = 0, worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    const double error = std::abs(got[i] - expected[i]);
    if (!(error <= worst)) worst = error;  // NaN stays
  }
  if (!(worst <= tolerance * largest)) {
    check::fail(what, 0,
                "differs by " + std::to_string(worst) + " where the largest is " + std::to_string(largest) +
                    "; allowed are " + std::to_string(tolerance) + " of it");
  }
}

Values joined(const std::vector<Values>& all) {
  Values to;
  for (const Values& one : all) to.insert(to.end(), one.begin(), one.end());
  return to;
}

// How far off a result of type T may be, of the largest value there is. `unit` is twice the largest error of
// one rounding. 16-bit types round nine values a unit in a step of a layer: h, four gates, four columns of
// dG. Sums of n products in float or double round n times. Such errors are independent and add up as the
// square root of their number; twice that is allowed. The weights of the tests, uniform in 1/sqrt(H), keep or
// shrink what went before.
template <class T>
double tolerance(const Case& c) {
  const double unit = std::is_same_v<T, double>   ? 0x1p-52
                      : std::is_same_v<T, float>  ? 0x1p-23
                      : std::is_same_v<T, half_t> ? 0x1p-10
                                                  : 0x1p-7;
  const LayerShape& s = c.network.first;
  const double walk = static_cast<double>(c.steps * c.network.layers);
  const double roundings =
      sizeof(T) == 2 ? 9 : static_cast<double>(s.input + s.gate_rows() + c.steps * c.batch);
  double allowed = unit * std::sqrt(walk * roundings);
  if (c.products == cuda::Products::bf16x3) allowed += 0x1p-16 * walk;  // the product that is left out, lo lo
  return allowed;
}

template <class T>
void compare(const Case& c) {
  const Inputs in(c);
  const std::size_t memory = cuda::emulated::live_bytes();
  const Outputs expected = on_cpu(c, in), got = on_device<T>(c, in);
  CHECK(cuda::emulated::live_bytes() == memory);
  const double allowed = tolerance<T>(c);
  const int before = check::failures;
  check_close("y", got.y, expected.y, allowed);
  if (c.network.dropout == 0 && !c.network.has_state_noise()) CHECK(got.y == got.inference_y);
  check_close("y of inference", got.inference_y, expected.inference_y, allowed);
  check_close("h_n", got.h_n, expected.h_n, allowed);
  check_close("dh0", got.dh0, expected.dh0, allowed);
  if (c.network.first.cell == Cell::lstm) {
    check_close("c_n", got.c_n, expected.c_n, allowed);
    check_close("dc0", got.dc0, expected.dc0, allowed);
  }
  if (!c.tokens) check_close("dx", got.dx, expected.dx, allowed);
  // Against the largest of them all: the terms of one that is small by itself are as large as those of the
  // rest.
  check_close("the gradients of parameters", joined(got.gradients), joined(expected.gradients), allowed);
  if (check::failures != before) {
    const LayerShape& s = c.network.first;
    check::fail("the case", 0,
                "was cell " + std::to_string(static_cast<int>(s.cell)) + " I=" + std::to_string(s.input) +
                    " H=" + std::to_string(s.hidden) + " P=" + std::to_string(s.projection) + " peephole " +
                    std::to_string(static_cast<int>(s.peephole)) + " T=" + std::to_string(c.steps) +
                    " B=" + std::to_string(c.batch) + " L=" + std::to_string(c.network.layers) +
                    " D=" + std::to_string(c.network.directions) + " size of T " + std::to_string(sizeof(T)));
  }
}

Case ragged(const Network& n) {
  Case c{n, 6, 5, {4, 0, 6, 1, 6}, std::vector<std::uint8_t>(30)};
  for (const std::size_t at : {0u, 7u, 11u, 14u, 29u}) c.reset[at] = 1;
  return c;
}

}  // namespace

TEST(stack_of_whole_batches) {
  for (const Network& n : networks()) compare<double>({n, 5, 3});
}

TEST(stack_with_lengths_and_resets) {
  for (const Network& n : networks()) {
    compare<float>(ragged(n));
    compare<double>(ragged(n));
    compare<half_t>(ragged(n));
    compare<bfloat16_t>(ragged(n));
  }
}

TEST(stack_strides) {
  for (const Network& n : networks()) {
    Case c{n, 4, 3};
    c.pad = 2;
    compare<float>(c);
    c = ragged(n);
    c.batch_first = true;
    c.pad = 1;
    compare<half_t>(c);
  }
}

TEST(stack_tokens) {
  for (const Network& n : networks()) {
    Case c = ragged(n);
    c.tokens = true;
    c.network.first.input = 11;
    compare<double>(c);
    // Few tokens: columns of W_ih are read where they are.
    c.network.first.input = 60;
    c.steps = 2;
    c.batch = 3;
    c.lengths = {2, 1, 2};
    c.reset.clear();
    compare<float>(c);
    compare<bfloat16_t>(c);
  }
}

// The CPU's masks: with others, nothing would agree.
TEST(stack_with_recurrent_dropout_and_zoneout) {
  for (const Network& n : noisy_networks()) {
    Case c{n, 5, 3};
    compare<double>(c);
    c.states = false;
    c.tokens = true;
    compare<double>(c);
    compare<float>(ragged(n));
    compare<double>(ragged(n));
    compare<half_t>(ragged(n));
    compare<bfloat16_t>(ragged(n));
    c = ragged(n);
    c.batch_first = true;
    c.pad = 2;
    compare<double>(c);
  }
}

// What is always dropped or kept leaves no trace: the state stays, and no gradient reaches a parameter.
TEST(stack_where_chance_has_no_say) {
  for (Network n : networks()) {
    n.recurrent_dropout = n.zoneout_h = 1;
    n.zoneout_c = n.first.cell == Cell::lstm ? 1 : 0;
    n.dropout = 0;
    const Case c = ragged(n);
    const Inputs in(c);
    compare<double>(c);
    for (const Values& g : on_device<float>(c, in).gradients) CHECK(g == Values(g.size(), 0.0));
  }
}

// Two directions run on two streams: whichever is ahead, the results are the same.
TEST(stack_directions_side_by_side) {
  for (const Network& n : networks()) {
    if (n.directions == 1) continue;
    Case c = ragged(n);
    for (unsigned seed = 0; seed < 8; ++seed) {
      c.tokens = seed % 4 == 3;
      const cuda::emulated::AnyOrderScope scope(seed);
      compare<float>(c);
    }
  }
}

TEST(stack_without_states_or_dy) {
  for (const Network& n : networks()) {
    Case c{n, 3, 2};
    c.states = false;
    compare<half_t>(c);
    c.states = true;
    c.outputs = false;
    compare<double>(c);
  }
}

TEST(stack_of_nothing_and_one) {
  for (const Network& n : networks()) {
    compare<double>({n, 3, 0});
    compare<bfloat16_t>({n, 1, 0});
    compare<double>({n, 1, 1});
    compare<half_t>({n, 1, 4, {1, 0, 1, 1}});
    compare<double>({n, 2, 2, {0, 0}});
  }
}

TEST(stack_bf16x3) {
  for (const Network& n : networks()) {
    Case c = ragged(n);
    c.products = cuda::Products::bf16x3;
    compare<float>(c);
  }
}

// float32 stays float32: the promise for default initialisation, uniform in 1/sqrt(H), which is that of the
// tests.
TEST(stack_bf16x3_keeps_its_promise) {
  for (const Cell cell : {Cell::lstm, Cell::gru}) {
    Network n;
    n.first.cell = cell;
    n.first.input = n.first.hidden = 48;
    Case c{n, 12, 4};
    c.products = cuda::Products::bf16x3;
    const Inputs in(c);
    const Outputs expected = on_cpu(c, in), got = on_device<float>(c, in);
    check_close("y", got.y, expected.y, 2e-5);
    check_close("dx", got.dx, expected.dx, 2e-5);
    for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
      check_close("a gradient of parameters", got.gradients[i], expected.gradients[i], 2e-5);
    }
  }
}

// Sizes around the tiles of the products, 64 and 32.
TEST(stack_tile_edges) {
  for (const Index hidden : {16, 17, 63, 65}) {
    Network n;
    n.first.input = hidden == 16 ? 64 : 33;
    n.first.hidden = hidden;
    compare<float>({n, 2, hidden == 17 ? 65 : 2});
    compare<half_t>({n, 2, hidden == 17 ? 65 : 2});
    n.first.cell = Cell::gru;
    compare<bfloat16_t>({n, 2, 2});
  }
}

TEST(stack_refuses_a_reserve_of_another_call) {
  const cuda::Reserve<float> never;
  Network n;
  n.first.input = n.first.hidden = 2;
  CHECK_THROWS(cuda::backward<float>({}, n, {}, never), std::invalid_argument, "belongs to another call");
  cuda::Reserve<float> reserve;
  reserve.layout({}, n, 3, 2);
  CHECK(reserve.belongs_to(n, 3, 2));
  CHECK(!reserve.belongs_to(n, 2, 3));
  CHECK_THROWS(cuda::forward<float>({}, n, {}, {}, nullptr), std::invalid_argument, "missing or too many");
}

// The same masks as on the CPU follow from the comparisons with dropout above. Here: a counter on the device
// that every training call increases.
TEST(stack_dropout_counter) {
  Network n;
  n.first.input = n.first.hidden = 8;
  n.layers = 2;
  n.dropout = 0.5;
  const Case c{n, 3, 2};
  const Inputs in(c);
  const DeviceArray<float> x(in.x), y(c.steps * c.batch * n.output());
  const DeviceList<std::uint64_t> calls({0});
  std::vector<DeviceArray<float>> parameters;
  std::vector<const float*> parameter_pointers;
  for (const Values& p : in.parameters) {
    parameters.emplace_back(p);
    parameter_pointers.push_back(parameters.back().data());
  }
  const auto run = [&](std::uint64_t call, std::uint64_t* counter) {
    ForwardArguments<float> args;
    c.describe(args);
    args.call = call;
    args.x = contiguous<const float>(x.data(), c.batch, n.first.input);
    args.y = contiguous(y.data(), c.batch, n.output());
    cuda::Options options;
    options.calls = counter;
    cuda::Reserve<float> reserve;
    cuda::forward<float>({}, n, parameter_pointers, args, &reserve, options);
    return y.values();
  };
  const Values first = run(5, calls.data()), second = run(5, calls.data());
  CHECK(first == run(5, nullptr));
  CHECK(second == run(6, nullptr));
  CHECK(first != second);
}

// Steps of streams, all rows or chosen ones, against a whole call.
template <class T>
void check_streams(const Network& n, Index batch, bool with_tokens = false) {
  const Index steps = 4, width = n.output();
  const Case c{n, steps, batch};
  const Inputs in(c);
  const DeviceArray<T> x(in.x), y(steps * batch * width);
  const DeviceList<std::int64_t> tokens(in.tokens);
  std::vector<DeviceArray<T>> parameters;
  std::vector<const T*> parameter_pointers;
  for (const Values& p : in.parameters) {
    parameters.emplace_back(p);
    parameter_pointers.push_back(parameters.back().data());
  }
  ForwardArguments<T> args;
  c.describe(args);
  args.x = contiguous<const T>(x.data(), batch, n.first.input);
  if (with_tokens) args.tokens = tokens.data();
  args.y = contiguous(y.data(), batch, width);
  cuda::Streams<T> whole({}, n, parameter_pointers, batch), stepped({}, n, parameter_pointers, batch),
      chosen({}, n, parameter_pointers, batch + 2);
  whole.run({}, args);
  const Values expected = y.values();
  const double allowed = tolerance<T>(c);
  const auto check_step = [&](cuda::Streams<T>& streams, Index t) {
    std::vector<T> out(static_cast<std::size_t>(batch * width));
    cuda::copy_to_host(out.data(), streams.y(), out.size() * sizeof(T), {});
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double want = expected[static_cast<std::size_t>(t * batch * width) + i];
      CHECK_NEAR(widen(out[i]), want, allowed * std::max(1.0, std::abs(want)));
    }
  };
  std::vector<Index> chosen_rows;  // the last ones, but for one: batch + 1, ..., 3, 2, 0
  for (Index i = 0; i < batch; ++i) chosen_rows.push_back(i + 1 < batch ? batch + 1 - i : 0);
  const DeviceList<Index> rows(chosen_rows);
  for (Index t = 0; t < steps; ++t) {
    const T* now = with_tokens ? nullptr : x.data() + t * batch * n.first.input;
    const std::int64_t* now_tokens = with_tokens ? tokens.data() + t * batch : nullptr;
    stepped.step({}, now, now_tokens, nullptr, batch);
    check_step(stepped, t);
    chosen.step({}, now, now_tokens, rows.data(), batch);
    check_step(chosen, t);
  }
  // Rows that no step named are as they were.
  const auto R = static_cast<std::size_t>(n.first.recurrent());
  std::vector<T> h(static_cast<std::size_t>(n.layers * (batch + 2)) * R);
  cuda::copy_to_host(h.data(), chosen.h(), h.size() * sizeof(T), {});
  for (std::size_t i = 0; i < h.size(); ++i) {
    const auto row = static_cast<Index>(i / R) % (batch + 2);
    if (std::find(chosen_rows.begin(), chosen_rows.end(), row) == chosen_rows.end()) CHECK(widen(h[i]) == 0);
  }
}

// c stays float inside a call and in a stream: 64 times 2^-10 is added to 1, which a 16-bit c would round
// away.
template <class T>
void check_cells_are_wide() {
  Network n;
  n.first.input = n.first.hidden = 1;
  const Index steps = 64;
  const double g = std::atanh(0x1p-9);  // i = 1/2, f = 1
  const DeviceArray<T> weights(Values(4, 0.0)), bias(Values{0, 30, g, 0}), none(Values(4, 0.0)),
      one(Values{1}), x(Values(static_cast<std::size_t>(steps), 0.0)), y(steps), h_n(1), c_n(1);
  const std::vector<const T*> parameters = {weights.data(), weights.data(), bias.data(), none.data()};
  ForwardArguments<T> args;
  args.steps = steps;
  args.batch = 1;
  args.x = contiguous<const T>(x.data(), 1, 1);
  args.c0 = one.data();
  args.y = contiguous(y.data(), 1, 1);
  args.h_n = h_n.data();
  args.c_n = c_n.data();
  cuda::forward<T>({}, n, parameters, args, nullptr);
  CHECK_NEAR(c_n.values()[0], 1.0625, 0x1p-8);

  cuda::Streams<T> streams({}, n, parameters, 1);
  float c = 1;
  cuda::copy_to_device(streams.c(), &c, sizeof c, {});
  for (Index t = 0; t < steps; ++t) streams.step({}, x.data(), nullptr, nullptr, 1);
  cuda::copy_to_host(&c, streams.c(), sizeof c, {});
  CHECK_NEAR(c, 1.0625, 64 * 0x1p-10 * 0x1p-8);  // g was rounded to T
}

TEST(cells_of_16_bit_types_are_wide) {
  check_cells_are_wide<half_t>();
  check_cells_are_wide<bfloat16_t>();
}

TEST(streams_equal_one_call) {
  std::vector<Network> all = networks();
  for (const Network& n : noisy_networks()) all.push_back(n);  // of which there is zoneout's expectation
  for (Network n : all) {
    n.directions = 1;
    check_streams<double>(n, 1);
    check_streams<double>(n, 11);
    check_streams<double>(n, 3, true);
    check_streams<float>(n, 8);
    check_streams<half_t>(n, 3);
    check_streams<bfloat16_t>(n, 9);
  }
}

TEST(streams_of_many_rows) {
  Network n;
  n.first.input = 5;
  n.first.hidden = 7;
  check_streams<float>(n, 32);
  check_streams<float>(n, 33);  // by the kernels of whole sequences
}

// The output of one step as the input of the next, where it lies and copied.
TEST(streams_take_their_own_output) {
  Network n;
  n.first.cell = Cell::gru;
  n.first.input = n.first.hidden = 37;
  const Inputs in({n, 1, 3});
  std::vector<DeviceArray<float>> parameters;
  std::vector<const float*> pointers;
  for (const Values& p : in.parameters) {
    parameters.emplace_back(p);
    pointers.push_back(parameters.back().data());
  }
  const DeviceArray<float> x(in.x);
  for (const cuda::emulated::Schedule& schedule : cuda::emulated::all_schedules(5)) {
    const cuda::emulated::ScheduleScope scope(schedule);
    cuda::Streams<float> fed_back({}, n, pointers, 3), copied({}, n, pointers, 3);
    const auto output = [](cuda::Streams<float>& streams) {
      std::vector<float> values(3 * 37);
      cuda::copy_to_host(values.data(), streams.y(), values.size() * sizeof(float), {});
      return Values(values.begin(), values.end());
    };
    fed_back.step({}, x.data(), nullptr, nullptr, 3);
    copied.step({}, x.data(), nullptr, nullptr, 3);
    for (int i = 0; i < 3; ++i) {
      const DeviceArray<float> copy(output(copied));
      copied.step({}, copy.data(), nullptr, nullptr, 3);
      fed_back.step({}, fed_back.y(), nullptr, nullptr, 3);
      CHECK(output(fed_back) == output(copied));
    }
  }
}

TEST(streams_run_in_any_order) {
  Network n;
  n.first.cell = Cell::gru;
  n.first.input = 3;
  n.first.hidden = 9;
  n.layers = 2;
  for (const cuda::emulated::Schedule& schedule : cuda::emulated::all_schedules(3)) {
    const cuda::emulated::ScheduleScope scope(schedule);
    check_streams<float>(n, 2);
  }
}
