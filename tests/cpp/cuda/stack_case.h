// A call of a whole network on the emulated device and on the CPU back end in double, and how far apart they
// may be.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/stack.h"
#include "device_array.h"
#include "emulator/runtime_emulated.h"
#include "networks.h"
#include "ops/network.h"

namespace fastrnn {

using cuda::DeviceArray;
using cuda::DeviceList;

using Values = std::vector<double>;

// Values that every element type of the tests can hold, so that all compute on the same numbers.
inline Values random_values(Index n, unsigned seed, double scale = 1) {
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
  bool add = false;     // gradients of parameters begin with ones, and are added to
  bool batch_first = false;
  Index pad = 0;  // elements between the rows of x, y and their gradients, which nobody may touch
  cuda::Products products = cuda::Products::automatic;
  cuda::Wish wish = {};

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
    x = random_values(rows * n.first.input, 1);
    h0 = random_values(states * n.first.recurrent(), 2);
    c0 = random_values(states * n.first.hidden, 3);
    dy = random_values(rows * n.output(), 4);
    dh_n = random_values(states * n.first.recurrent(), 5);
    dc_n = random_values(states * n.first.hidden, 6);
    for (Index i = 0; i < rows; ++i) tokens.push_back((i * i + 3) % n.first.input);
    unsigned seed = 10;
    for (const Index size : n.parameter_sizes()) {
      parameters.push_back(random_values(size, ++seed, 1 / std::sqrt(static_cast<double>(n.first.hidden))));
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

// Parameters on the device.
template <class T>
struct DeviceParameters {
  std::vector<DeviceArray<T>> arrays;
  std::vector<const T*> pointers;

  explicit DeviceParameters(const std::vector<Values>& parameters) {
    for (const Values& p : parameters) pointers.push_back(arrays.emplace_back(p).data());
  }
};

template <class T>
std::vector<const T*> pointers(const std::vector<std::vector<T>>& all) {
  std::vector<const T*> to;
  for (const auto& one : all) to.push_back(one.data());
  return to;
}

inline Outputs on_cpu(const Case& c, const Inputs& in) {
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
  for (const Values& p : in.parameters) out.gradients.emplace_back(p.size(), c.add ? 1.0 : std::nan(""));

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
  args.add = c.add;
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

// With `replayed`, the training step is captured in a graph after that, and what the graph's replay makes of
// these x and dy is returned instead.
template <class T>
Outputs on_device(const Case& c, const Inputs& in, const Inputs* replayed = nullptr) {
  const Network& n = c.network;
  const bool lstm = n.first.cell == Cell::lstm;
  const cuda::Stream stream{replayed ? reinterpret_cast<void*>(0x77) : nullptr};
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
  const DeviceParameters<T> parameters(in.parameters);
  std::vector<DeviceArray<T>> gradients;
  for (const Values& p : in.parameters) {
    gradients.push_back(c.add ? DeviceArray<T>(Values(p.size(), 1.0)) : none(p));
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
  options.wish = c.wish;
  ForwardArguments<T> forward_args;
  inputs(forward_args);
  forward_args.h_n = h_n.data();
  forward_args.c_n = lstm ? c_n.data() : nullptr;
  forward_args.y = rows(inference_y.data(), out_rows);
  cuda::forward<T>(stream, n, parameters.pointers, forward_args, nullptr, options);
  forward_args.y = rows(y.data(), out_rows);
  cuda::Reserve<T> reserve;

  BackwardArguments<T> args;
  inputs(args);
  args.parameters = parameters.pointers;
  for (const DeviceArray<T>& g : gradients) args.gradients.push_back(g.data());
  args.add = c.add;
  args.y = constant(rows(y.data(), out_rows));
  if (c.outputs) args.dy = constant(rows(dy.data(), out_rows));
  args.dh_n = c.states ? dh_n.data() : nullptr;
  args.dc_n = c.states && lstm ? dc_n.data() : nullptr;
  if (!c.tokens) args.dx = rows(dx.data(), in_rows);
  args.dh0 = dh0.data();
  args.dc0 = lstm ? dc0.data() : nullptr;

  const auto train = [&] {
    cuda::forward<T>(stream, n, parameters.pointers, forward_args, &reserve, options);
    cuda::backward<T>(stream, n, args, reserve, options);
  };
  train();
  if (replayed) {
    cuda::emulated::begin_capture(stream);
    train();
    cuda::emulated::end_capture(stream);
    for (const DeviceArray<T>* array : {&y, &h_n, &c_n, &dx, &dh0, &dc0}) array->forget();
    for (const DeviceArray<T>& g : gradients) g.forget();
    x.set(in_rows.out(replayed->x));
    dy.set(out_rows.out(replayed->dy));
    cuda::emulated::replay();
  }

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
inline void check_close(const char* what, const Values& got, const Values& expected, double tolerance) {
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

inline Values joined(const std::vector<Values>& all) {
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

inline Case ragged(const Network& n) {
  Case c{n, 6, 5, {4, 0, 6, 1, 6}, std::vector<std::uint8_t>(30)};
  for (const std::size_t at : {0u, 7u, 11u, 14u, 29u}) c.reset[at] = 1;
  return c;
}

}  // namespace fastrnn
