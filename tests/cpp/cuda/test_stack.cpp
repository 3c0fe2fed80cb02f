// Whole networks on the emulated device against the CPU back end in double: every cell and option, element
// type, lengths, resets, tokens, dropout, strides, what may be absent; outputs between guards. Streams
// against whole calls.
#include <algorithm>

#include "check.h"
#include "emulator/schedule.h"
#include "stack_case.h"

using namespace fastrnn;

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

// A gradient that is written twice in a call would be found twice in the sum.
TEST(stack_gradients_are_added_to) {
  for (const Network& n : networks()) {
    Case c = ragged(n);
    c.add = true;
    for (const bool tokens : {false, true}) {
      c.tokens = tokens;
      compare<double>(c);
      compare<half_t>(c);
    }
    c.tokens = false;
    c.products = cuda::Products::bf16x3;
    compare<float>(c);
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
  const DeviceParameters<float> parameters(in.parameters);
  const auto run = [&](std::uint64_t call, std::uint64_t* counter) {
    ForwardArguments<float> args;
    c.describe(args);
    args.call = call;
    args.x = contiguous<const float>(x.data(), c.batch, n.first.input);
    args.y = contiguous(y.data(), c.batch, n.output());
    cuda::Options options;
    options.calls = counter;
    cuda::Reserve<float> reserve;
    cuda::forward<float>({}, n, parameters.pointers, args, &reserve, options);
    return y.values();
  };
  const Values first = run(5, calls.data()), second = run(5, calls.data());
  CHECK(first == run(5, nullptr));
  CHECK(second == run(6, nullptr));
  CHECK(first != second);
}

// Steps of streams, all rows or chosen ones, against a whole call.
template <class T>
void check_streams(const Network& n, Index batch, bool with_tokens = false, const cuda::Wish& wish = {}) {
  const Index steps = 4, width = n.output();
  Case c{n, steps, batch};
  if (wish.any() && std::is_same_v<T, float>) c.products = cuda::Products::bf16x3;
  const Inputs in(c);
  const DeviceArray<T> x(in.x), y(steps * batch * width);
  const DeviceList<std::int64_t> tokens(in.tokens);
  const DeviceParameters<T> parameters(in.parameters);
  ForwardArguments<T> args;
  c.describe(args);
  args.x = contiguous<const T>(x.data(), batch, n.first.input);
  if (with_tokens) args.tokens = tokens.data();
  args.y = contiguous(y.data(), batch, width);
  cuda::Streams<T> whole({}, n, parameters.pointers, batch), stepped({}, n, parameters.pointers, batch),
      chosen({}, n, parameters.pointers, batch + 2);
  cuda::Options options;
  options.products = c.products;
  options.wish = wish;
  // As wished for in two calls, of which the second goes on.
  const Index calls = wish.any() ? 2 : 1;
  args.steps = steps / calls;
  for (Index call = 0; call < calls; ++call) {
    const Index time = call * args.steps;
    args.x.data = x.data() + time * batch * n.first.input;
    if (with_tokens) args.tokens = tokens.data() + time * batch;
    args.y.data = y.data() + time * batch * width;
    whole.run({}, args, options);
  }
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

TEST(streams_go_on_after_persistent_kernels) {
  for (const Cell cell : {Cell::lstm, Cell::gru, Cell::rnn}) {
    Network n;
    n.first.cell = cell;
    n.first.input = 3;
    n.first.hidden = 20;
    n.layers = 2;
    for (const cuda::Wish& wish :
         {cuda::Wish{cuda::Strategy::cta, 1, 8, {}}, cuda::Wish{cuda::Strategy::cluster, 2, 8, {}}}) {
      check_streams<float>(n, 3, false, wish);
      check_streams<half_t>(n, 9, true, wish);
      check_streams<bfloat16_t>(n, 3, false, wish);
    }
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
  const DeviceParameters<float> parameters(in.parameters);
  const DeviceArray<float> x(in.x);
  for (const cuda::emulated::Schedule& schedule : cuda::emulated::all_schedules(5)) {
    const cuda::emulated::ScheduleScope scope(schedule);
    cuda::Streams<float> fed_back({}, n, parameters.pointers, 3), copied({}, n, parameters.pointers, 3);
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
