// Work on whole arrays, with one thread and with three, for every instruction set, against plain sums in
// double. Arrays are exactly as long as they must be: AddressSanitizer sees a step outside, ThreadSanitizer
// who writes where another reads.
#include <random>

#include "check.h"
#include "cpu/isa.h"
#include "ops/arrays.h"
#include "threads.h"

using namespace fastrnn;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

std::vector<float> random(Index n, unsigned seed) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<float> values(at(n));
  for (float& value : values) value = static_cast<float>(uniform(bits));
  return values;
}

template <class F>
void for_all(F test) {
  const cpu::Isa before = cpu::current_isa();
  for (const cpu::Isa isa : cpu::available_isas()) {
    cpu::set_isa(cpu::name(isa));
    for (const int count : {1, 3}) {
      const Threads threads(count);
      test();
    }
  }
  cpu::set_isa(cpu::name(before));
}

void check_linear(Index rows, Index inputs, Index outputs) {
  const std::vector<float> x = random(rows * inputs, 1), w = random(outputs * inputs, 2),
                           b = random(outputs, 3);
  const std::vector<float> dy = random(rows * outputs, 4);
  std::vector<float> y(at(rows * outputs)), dx(at(rows * inputs)), dw(at(outputs * inputs), 1),
      db(at(outputs), 1);
  Linear<float> shape;
  shape.rows = rows;
  shape.inputs = inputs;
  shape.outputs = outputs;
  shape.weight = w.data();
  linear_forward(shape, x.data(), b.data(), y.data());
  linear_backward(shape, x.data(), dy.data(), dx.data(), dw.data(), db.data());
  for (Index n = 0; n < rows; ++n) {
    for (Index o = 0; o < outputs; ++o) {
      double sum = b[at(o)];
      for (Index i = 0; i < inputs; ++i) sum += double{x[at(n * inputs + i)]} * w[at(o * inputs + i)];
      CHECK_NEAR(y[at(n * outputs + o)], sum, 1e-5 * static_cast<double>(inputs));
    }
    for (Index i = 0; i < inputs; ++i) {
      double sum = 0;
      for (Index o = 0; o < outputs; ++o) sum += double{dy[at(n * outputs + o)]} * w[at(o * inputs + i)];
      CHECK_NEAR(dx[at(n * inputs + i)], sum, 1e-5 * static_cast<double>(outputs));
    }
  }
  for (Index o = 0; o < outputs; ++o) {
    double bias = 1;
    for (Index n = 0; n < rows; ++n) bias += dy[at(n * outputs + o)];
    CHECK_NEAR(db[at(o)], bias, 1e-5 * static_cast<double>(rows));
    for (Index i = 0; i < inputs; ++i) {
      double sum = 1;
      for (Index n = 0; n < rows; ++n) sum += double{dy[at(n * outputs + o)]} * x[at(n * inputs + i)];
      CHECK_NEAR(dw[at(o * inputs + i)], sum, 1e-5 * static_cast<double>(rows));
    }
  }
}

}  // namespace

TEST(linear) {
  for_all([] {
    check_linear(1, 1, 1);
    check_linear(7, 17, 33);
    check_linear(520, 49, 41);  // two blocks of rows and a shorter one, work for three threads
  });
}

TEST(softmax_cross_entropy_of_rows) {
  for_all([] {
    const Index rows = 700, width = 35;
    const std::vector<float> logits = random(rows * width, 1);
    std::vector<std::int64_t> targets(at(rows));
    std::vector<std::uint8_t> scored(at(rows));
    for (Index row = 0; row < rows; ++row) {
      scored[at(row)] = row % 3 != 0;
      targets[at(row)] = scored[at(row)] ? row % width : -1;
    }
    std::vector<float> gradient(at(rows * width));
    cpu::SoftmaxCrossEntropy<float> p;
    p.last = rows;
    p.width = width;
    p.logits = logits.data();
    p.targets = targets.data();
    p.scored = scored.data();
    p.gradient = gradient.data();
    double expected = 0;
    const double loss = softmax_cross_entropy(p);
    for (Index row = 0; row < rows; ++row) {
      double sum = 0;
      for (Index i = 0; i < width; ++i) sum += std::exp(double{logits[at(row * width + i)]});
      for (Index i = 0; i < width; ++i) {
        const double share = std::exp(double{logits[at(row * width + i)]}) / sum;
        const bool hit = i == targets[at(row)];
        CHECK_NEAR(gradient[at(row * width + i)], scored[at(row)] ? share - hit : 0, 1e-6);
        if (hit) expected -= std::log(share);
      }
    }
    CHECK_NEAR(loss, expected, 1e-3);
  });
}

TEST(optimizers_go_once_over_each_array) {
  for_all([] {
    const Index count = 200003, few = 5;
    std::vector<float> p(at(count), 1), v(at(count)), q(at(few), 1), u(at(few));
    const std::vector<float> g = random(count, 1);
    cells::UpdateNumbers<float> numbers;
    numbers.rate = 0.5f;
    update<float>({{cells::Rule::sgd, &numbers, p.data(), g.data(), v.data(), nullptr, 0, count},
                   {cells::Rule::sgd, &numbers, q.data(), g.data(), u.data(), nullptr, 0, few}});
    int wrong = 0;
    for (Index i = 0; i < count; ++i) wrong += p[at(i)] != 1 - 0.5f * g[at(i)] || v[at(i)] != g[at(i)];
    for (Index i = 0; i < few; ++i) wrong += q[at(i)] != p[at(i)];
    CHECK(wrong == 0);
    double squares = 0;
    for (const float value : g) squares += double{value} * value;
    CHECK_NEAR(sum_of_squares(g.data(), count), squares, 1e-7 * squares);
  });
}
