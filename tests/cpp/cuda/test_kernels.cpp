// The kernels that are not one step of a cell, each alone: products, masks, sums, in every schedule of the
// emulator.
#include <random>

#include "check.h"
#include "core/philox.h"
#include "cpu/noise.h"
#include "cuda/gemm.h"
#include "cuda/sequence.h"
#include "device_array.h"
#include "emulator/schedule.h"

using namespace fastrnn;
using namespace fastrnn::cuda;
using emulated::all_schedules;
using emulated::Schedule;
using emulated::ScheduleScope;

namespace {

using Values = std::vector<double>;

template <class T>
Values random(Index n, unsigned seed) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Values values(static_cast<std::size_t>(n));
  for (double& v : values) v = static_cast<double>(widen(narrow<T>(static_cast<Compute<T>>(uniform(bits)))));
  return values;
}

struct Size {
  Index rows, columns, depth;
};

// `pad`: elements between the rows of every matrix; 1 leaves nothing aligned.
template <class T, class Out>
void check_gemm(Size s, bool a_transposed, bool b_transposed, bool add, Index pad) {
  const Index a_stride = (a_transposed ? s.rows : s.depth) + pad,
              b_stride = (b_transposed ? s.depth : s.columns) + pad, c_stride = s.columns + pad;
  const Values a = random<T>((a_transposed ? s.depth : s.rows) * a_stride, 1),
               b = random<T>((b_transposed ? s.columns : s.depth) * b_stride, 2),
               c = random<Out>(s.rows * c_stride, 3);
  const DeviceArray<T> on_a(a), on_b(b);
  const DeviceArray<Out> on_c(c);
  Gemm g;
  g.rows = s.rows;
  g.columns = s.columns;
  g.depth = s.depth;
  g.a = {on_a.data(), a_stride, a_transposed};
  g.b = {on_b.data(), b_stride, b_transposed};
  g.c = on_c.data();
  g.c_stride = c_stride;
  g.add = add;
  g.dtype = dtype_of<T>;
  g.wide_out = !std::is_same_v<T, Out>;
  gemm_own({}, g);
  const Values got = on_c.values();
  // A chain of n products of numbers up to 1 in the compute type, and one rounding to Out.
  const double unit = std::is_same_v<Compute<T>, double> ? 0x1p-52 : 0x1p-23;
  const double rounding = sizeof(Out) == 2 ? (std::is_same_v<Out, half_t> ? 0x1p-11 : 0x1p-8) : unit;
  for (Index i = 0; i < s.rows; ++i) {
    for (Index j = 0; j < c_stride; ++j) {
      const auto at = static_cast<std::size_t>(i * c_stride + j);
      if (j >= s.columns) {
        CHECK(got[at] == c[at]);  // between the rows nothing is written
        continue;
      }
      double sum = add ? c[at] : 0, size = 1 + std::abs(sum);
      for (Index k = 0; k < s.depth; ++k) {
        const double product =
            a[static_cast<std::size_t>(a_transposed ? k * a_stride + i : i * a_stride + k)] *
            b[static_cast<std::size_t>(b_transposed ? j * b_stride + k : k * b_stride + j)];
        sum += product;
        size += std::abs(product);
      }
      CHECK_NEAR(got[at], sum,
                 unit * std::sqrt(static_cast<double>(s.depth + 1)) * size + rounding * std::abs(sum));
    }
  }
}

template <class T, class Out>
void check_every_gemm() {
  // Around tiles of 64 across and of 16 or 32 deep.
  for (const Size s : {Size{1, 1, 1}, {3, 130, 15}, {65, 63, 33}, {64, 64, 64}, {5, 7, 0}}) {
    for (int i = 0; i < 8; ++i) check_gemm<T, Out>(s, i & 1, i & 2, i & 4, i & 4 ? 0 : 1);
    check_gemm<T, Out>(s, false, true, false, 8);
  }
}

}  // namespace

TEST(gemm_float) { check_every_gemm<float, float>(); }
TEST(gemm_double) { check_every_gemm<double, double>(); }
TEST(gemm_half) { check_every_gemm<half_t, half_t>(); }
TEST(gemm_half_to_float) { check_every_gemm<half_t, float>(); }
TEST(gemm_bfloat16) { check_every_gemm<bfloat16_t, bfloat16_t>(); }
TEST(gemm_bfloat16_to_float) { check_every_gemm<bfloat16_t, float>(); }

TEST(gemm_in_any_order) {
  for (const Schedule& schedule : all_schedules(3)) {
    const ScheduleScope scope(schedule);
    for (int i = 0; i < 4; ++i) {
      check_gemm<float, float>({65, 5, 33}, i & 1, i & 2, false, 0);
      check_gemm<half_t, float>({66, 9, 70}, i & 1, i & 2, false, 0);  // aligned where it lies along 64 or 8
      check_gemm<bfloat16_t, bfloat16_t>({8, 16, 72}, i & 1, i & 2, true, 0);
    }
  }
}

// bf16x3 against the exact product: what is left out, lo lo, and the rounding of lo are each 2^-16 of a
// product at most.
TEST(gemm_split_keeps_float_precision) {
  Request request;
  request.products = Products::bf16x3;
  const Plan plan = make_plan(request, Limits());
  const Queue queue({}, plan);
  const Index rows = 9, columns = 17, depth = 40;
  for (int i = 0; i < 4; ++i) {
    const bool a_transposed = i & 1, b_transposed = i & 2;
    const Values a = random<float>(rows * depth, 1), b = random<float>(depth * columns, 2);
    const DeviceArray<float> on_a(a), on_b(b), on_c(rows * columns);
    const Memory split(static_cast<std::size_t>(queue.split_bytes<float>(rows, columns, depth)), {});
    CHECK(split.capacity() > 0);
    queue.product<float>(rows, columns, depth, {on_a.data(), a_transposed ? rows : depth, a_transposed},
                         {on_b.data(), b_transposed ? depth : columns, b_transposed}, on_c.data(), columns,
                         split.get());
    const Values got = on_c.values();
    double plain_bf16 = 0;  // what one bfloat16 product would be off by
    for (Index r = 0; r < rows; ++r) {
      for (Index c = 0; c < columns; ++c) {
        double sum = 0, size = 0, rounded = 0;
        for (Index k = 0; k < depth; ++k) {
          const double x = a[static_cast<std::size_t>(a_transposed ? k * rows + r : r * depth + k)];
          const double w = b[static_cast<std::size_t>(b_transposed ? c * depth + k : k * columns + c)];
          sum += x * w;
          size += std::abs(x * w);
          rounded += static_cast<double>(widen(narrow<bfloat16_t>(static_cast<float>(x)))) *
                     static_cast<double>(widen(narrow<bfloat16_t>(static_cast<float>(w))));
        }
        CHECK_NEAR(got[static_cast<std::size_t>(r * columns + c)], sum, 3 * 0x1p-16 * size);
        plain_bf16 = std::max(plain_bf16, std::abs(rounded - sum) / size);
      }
    }
    CHECK(plain_bf16 > 3 * 0x1p-16);  // or the check above would tell nothing
  }
}

TEST(masks_are_those_of_the_cpu) {
  const Index steps = 3, batch = 5, width = 7, directions = 2;
  const Values in = random<float>(steps * batch * width * directions, 1);
  for (const double p : {0.0, 0.3, 1.0}) {
    const Dropout mask = Dropout::make(p, 0x123456789abcdef0u, 77, 4, directions);
    const DeviceArray<float> from(in), to(static_cast<Index>(in.size()));
    const DeviceList<std::uint64_t> key({0});
    Grid grid;
    grid.blocks = 1;
    launch<BeginDropout>({}, grid, {0x123456789abcdef0u, 77, nullptr, key.data()});
    GatherRows<float, float>::Params q;
    q.walk.steps = steps;
    q.walk.batch = batch;
    q.width = width * directions;
    q.from = contiguous<const float>(from.data(), batch, q.width);
    q.to = contiguous(to.data(), batch, q.width);
    q.mask = {Dropout::make(p, 0, 0, 4, directions), key.data()};
    launch<GatherRows<float, float>>({}, grid, q);
    std::vector<float> expected(in.begin(), in.end()), scale(static_cast<std::size_t>(q.width));
    const cpu::ForwardKernels<float>& cpu_kernels = cpu::baseline::float_kernels;
    for (Index t = 0; t < steps; ++t) {
      for (Index b = 0; b < batch; ++b) {
        float* row = expected.data() + (t * batch + b) * q.width;
        cpu::drop(cpu_kernels, mask, t, b, q.width, row, scale.data(), row);
      }
    }
    CHECK(to.values() == Values(expected.begin(), expected.end()));
  }
}

TEST(sums_are_in_a_fixed_order) {
  const Index rows = 70, columns = 300;
  const Values dg = random<float>(rows * columns, 1);
  const DeviceArray<float> on_dg(dg);
  std::vector<float> sums(static_cast<std::size_t>(columns));
  for (Index chunk = 0; chunk < rows; chunk += 32) {
    for (Index j = 0; j < columns; ++j) {
      float sum = 0;
      for (Index i = chunk; i < std::min(rows, chunk + 32); ++i)
        sum += static_cast<float>(dg[static_cast<std::size_t>(i * columns + j)]);
      sums[static_cast<std::size_t>(j)] += sum;
    }
  }
  for (const Schedule& schedule : all_schedules(1)) {
    const ScheduleScope scope(schedule);
    const DeviceArray<float> partial(3 * columns), sum(columns), also(columns - 5);
    ColumnSum<float>::Params q;
    q.rows = rows;
    q.columns = q.a_stride = columns;
    q.chunk = 32;
    q.a = on_dg.data();
    q.partial = partial.data();
    launch<ColumnSum<float>>({}, {2}, q);
    launch<FinishSum<float>>({}, {1}, {3, columns, partial.data(), sum.data(), also.data(), columns - 5});
    CHECK(sum.values() == Values(sums.begin(), sums.end()));
    CHECK(also.values() == Values(sums.begin(), sums.end() - 5));
  }
}

namespace {

// Against the rows of each token, added one after the other; between the columns of dG's rows, and where
// padding is, stands what must not count.
template <class T>
void check_token_gradient(Index rows, Index columns, Index vocabulary) {
  const Index stride = columns + 3;
  Values dg = random<T>(rows * stride, 1);
  std::vector<std::int64_t> tokens;
  std::vector<Compute<T>> sums(static_cast<std::size_t>(columns * vocabulary));
  for (Index i = 0; i < rows; ++i) {
    const bool padding = i % 7 == 3;
    // Some tokens are frequent, others absent; at padding stands anything.
    const Index token = padding ? (i % 2 ? INT64_MAX : INT64_MIN) : i * i % vocabulary;
    tokens.push_back(token);
    for (Index j = 0; j < columns; ++j) {
      double& value = dg[static_cast<std::size_t>(i * stride + j)];
      if (padding) {
        value = 0;
      } else {
        sums[static_cast<std::size_t>(j * vocabulary + token)] += static_cast<Compute<T>>(value);
      }
    }
  }
  Values expected;
  for (const Compute<T> sum : sums) expected.push_back(static_cast<double>(widen(narrow<T>(sum))));
  const DeviceArray<T> on_dg(dg), gradient(columns * vocabulary);
  const DeviceList<std::int64_t> on_tokens(tokens);
  const Memory keys(2 * static_cast<std::size_t>(rows) * sizeof(std::uint64_t), {}),
      starts(static_cast<std::size_t>(vocabulary + 1) * sizeof(Index), {});
  Plan plan;
  plan.most_blocks = 5;
  token_gradient<T>(Queue({}, plan), on_tokens.data(), rows, vocabulary, on_dg.data(), stride, columns,
                    gradient.data(), false, static_cast<std::uint64_t*>(keys.get()),
                    static_cast<Index*>(starts.get()));
  CHECK(gradient.values() == expected);
}

}  // namespace

TEST(token_gradients_at_every_size) {
  // Around runs of 2^k rows, pieces of 256 rows, columns or tokens, and 8 rows of a token at once.
  for (const Index rows : {0, 1, 2, 3, 4, 5, 31, 33, 255, 256, 257, 513}) {
    for (const Index vocabulary : {1, 2, 5, 300}) check_token_gradient<float>(rows, 3, vocabulary);
  }
  for (const Index columns : {1, 127, 128, 129, 255, 256, 257, 513}) {
    check_token_gradient<double>(33, columns, 3);
    check_token_gradient<half_t>(70, columns, 5);
    check_token_gradient<bfloat16_t>(17, columns, 2);
  }
  check_token_gradient<float>(40, 2, 50000);
}

TEST(token_gradients_in_any_order) {
  for (const Schedule& schedule : all_schedules(10)) {
    const ScheduleScope scope(schedule);
    check_token_gradient<float>(261, 33, 7);
    check_token_gradient<bfloat16_t>(70, 257, 3);
  }
}

TEST(transpose_around_tiles) {
  for (const auto& [rows, columns] : {std::pair<Index, Index>{1, 1}, {31, 33}, {64, 32}, {5, 100}}) {
    const Values in = random<double>(rows * columns, 1);
    const DeviceArray<double> from(in), to(rows * columns);
    Transpose<double>::Params p;
    p.rows = rows;
    p.columns = columns;
    p.from = from.data();
    p.to = to.data();
    Grid grid;
    grid.blocks = 2;
    grid.shared = Transpose<double>::Layout().shared.bytes();
    launch<Transpose<double>>({}, grid, p);
    const Values got = to.values();
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) {
        CHECK(got[static_cast<std::size_t>(j * rows + i)] == in[static_cast<std::size_t>(i * columns + j)]);
      }
    }
  }
}

// Every element once, whatever the shape and however few CTAs there are.
TEST(pointwise_pieces_cover_everything) {
  struct Thread {
    int t, b, n;
    int thread() const { return t; }
    int block() const { return b; }
    int blocks() const { return n; }
  };
  for (const Index units : {1, 2, 3, 127, 128, 129, 255, 256, 257, 513}) {
    for (const Index rows : {0, 1, 7, 300}) {
      const Index steps = 3;
      const auto all = static_cast<int>(Pieces(steps, rows, units).all);
      for (const int blocks : {1, 2, all}) {
        std::vector<int> met(static_cast<std::size_t>(steps * rows * units));
        for (int b = 0; b < blocks; ++b) {
          for (int t = 0; t < kPointwiseThreads; ++t) {
            Thread x{t, b, blocks};
            for_times(x, steps, rows, units, [&](Index step, Index row, Index unit) {
              ++met[static_cast<std::size_t>((step * rows + row) * units + unit)];
            });
          }
        }
        for (const int n : met) CHECK(n == 1);
        std::vector<int> met_once(static_cast<std::size_t>(rows * units));
        for (int b = 0; b < blocks; ++b) {
          for (int t = 0; t < kPointwiseThreads; ++t) {
            Thread x{t, b, blocks};
            for_units(x, rows, units, [&](Index row, Index unit) {
              ++met_once[static_cast<std::size_t>(row * units + unit)];
            });
          }
        }
        for (const int n : met_once) CHECK(n == 1);
      }
    }
  }
}

// Walk and RowAt against their definition, whatever the array of lengths holds.
TEST(walk_meets_every_time_once) {
  const Index steps = 5;
  const std::vector<Index> lengths = {5, 3, 0, 1, -7, 1000};
  const std::vector<Index> clamped = {5, 3, 0, 1, 0, 5};
  const auto batch = static_cast<Index>(lengths.size());
  std::vector<std::uint8_t> reset(static_cast<std::size_t>(steps * batch));
  for (std::size_t i = 0; i < reset.size(); ++i) reset[i] = i * i % 7 < 3;
  for (const bool reverse : {false, true}) {
    const Walk walk{lengths.data(), reset.data(), steps, batch, reverse};
    for (Index b = 0; b < batch; ++b) {
      const Index length = clamped[static_cast<std::size_t>(b)];
      std::vector<int> met(static_cast<std::size_t>(steps));
      for (Index step = 0; step < steps; ++step) {
        const RowAt row(walk, b, step);
        ++met[static_cast<std::size_t>(row.time())];
        CHECK(row.active() == (step < length));
        CHECK(row.index() == row.time() * batch + b);
        if (!row.active()) {
          CHECK(row.time() == step);
          continue;
        }
        const Index t = reverse ? length - 1 - step : step;
        CHECK(row.time() == t);
        CHECK(row.ends() == (step == length - 1));
        if (step > 0) CHECK(row.previous_time() == RowAt(walk, b, step - 1).time());
        // A reset at t stands between t - 1 and t; before the first step of a direction only the forward one
        // meets it.
        const bool boundary = reverse ? t + 1 < length && reset[static_cast<std::size_t>((t + 1) * batch + b)]
                                      : reset[static_cast<std::size_t>(t * batch + b)];
        CHECK(row.starts_piece() == boundary);
        CHECK(row.goes_on() == (step + 1 < length && !RowAt(walk, b, step + 1).starts_piece()));
      }
      for (const int n : met) CHECK(n == 1);
    }
  }
  const Index rows[] = {2, -1, 9};
  const StateRows chosen{rows, 4}, same{nullptr, 4};
  CHECK(chosen.at(0) == 2 && chosen.at(1) == 0 && chosen.at(2) == 3);
  CHECK(same.at(2) == 2);
}

TEST(numbers_out_of_range_are_found_on_request) {
  Network n;
  n.first.input = 4;
  n.first.hidden = 3;
  Arguments<float> args;
  args.steps = 3;
  args.batch = 2;
  const DeviceList<Index> good({3, 0}), long_one({3, 4}), negative({-1, 3}), short_one({1, 3});
  for (const auto* lengths : {&long_one, &negative}) {
    args.lengths = lengths->data();
    CHECK_THROWS(check_numbers({}, n, args), std::invalid_argument, "lengths must be from 0 to T");
  }
  args.lengths = good.data();
  check_numbers({}, n, args);
  const DeviceList<std::int64_t> tokens({0, 99, 4, 99, 3, 99});
  args.tokens = tokens.data();
  CHECK_THROWS(check_numbers({}, n, args), std::invalid_argument, "token out of range");
  const DeviceList<std::int64_t> padded({0, 3, 4, 2, -1, 1});  // row 0 ends after one step
  args.tokens = padded.data();
  args.lengths = short_one.data();
  check_numbers({}, n, args);
  const DeviceList<Index> rows({1, 3}), twice({2, 2});
  CHECK_THROWS(check_rows({}, rows.data(), 2, 3), std::invalid_argument, "out of range");
  CHECK_THROWS(check_rows({}, twice.data(), 2, 3), std::invalid_argument, "twice");
  check_rows({}, rows.data(), 2, 4);
}
