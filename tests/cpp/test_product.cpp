// The table's products and the packing beside them, for every instruction set and at sizes around the tile,
// against plain sums in long double. Every array is exactly as long as it must be: AddressSanitizer sees a
// step outside.
#include <functional>
#include <limits>
#include <random>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "ops/network.h"

using namespace fastrnn;
using namespace fastrnn::cpu;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

template <class T>
std::vector<T> random(Index n, unsigned seed) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<T> values(at(n));
  for (T& value : values) value = static_cast<T>(uniform(bits));
  return values;
}

// Pointers to the rows of an array.
template <class T>
std::vector<T*> rows_of(std::vector<T>& array, Index rows, Index stride) {
  std::vector<T*> pointers;
  for (Index row = 0; row < rows; ++row) pointers.push_back(array.data() + row * stride);
  return pointers;
}

Index panels_for(Index units, Index lanes) { return (units + lanes - 1) / lanes; }

// w is [gates][units][depth].
template <class T>
std::vector<T> pack(const std::vector<T>& w, Index gates, Index units, Index depth, Index lanes) {
  std::vector<T> packed(at(panels_for(units, lanes) * depth * gates * lanes));
  for (Index g = 0; g < gates; ++g) {
    for (Index u = 0; u < units; ++u) {
      for (Index k = 0; k < depth; ++k) {
        packed[at((((u / lanes) * depth + k) * gates + g) * lanes + u % lanes)] =
            w[at((g * units + u) * depth + k)];
      }
    }
  }
  return packed;
}

// Calls test(kernels) for both types and every set that this CPU has.
template <class F>
void for_all(F test) {
  const Isa before = current_isa();
  for (const Isa isa : available_isas()) {
    set_isa(name(isa));
    test(current_kernels<float>());
    test(current_kernels<double>());
  }
  set_isa(name(before));
}

template <class T>
struct Problem {
  Index gates, units, rows, depth;
  std::vector<T> w, a, bias;

  Problem(Index gates_, Index units_, Index rows_, Index depth_)
      : gates(gates_),
        units(units_),
        rows(rows_),
        depth(depth_),
        w(random<T>(gates * units * depth, 1)),
        a(random<T>(rows * depth, 2)),
        bias(random<T>(gates * units, 3)) {}

  Index columns() const { return gates * units; }

  // A chain of depth products: each step rounds a sum of at most depth + 1 terms below 1.
  double tolerance() const {
    return 2 * std::numeric_limits<T>::epsilon() * static_cast<double>((depth + 1) * (depth + 1));
  }
  long double exact(Index row, Index column) const {
    long double sum = 0;
    for (Index k = 0; k < depth; ++k) {
      sum += static_cast<long double>(w[at(column * depth + k)]) *
             static_cast<long double>(a[at(row * depth + k)]);
    }
    return sum;
  }
};

template <class T>
std::vector<T> run(const Kernels<T>& kernels, Problem<T>& problem, Index first_row, Index rows) {
  const std::vector<T> packed = pack(problem.w, problem.gates, problem.units, problem.depth, kernels.lanes);
  std::vector<T> out(at(rows * problem.columns()), std::numeric_limits<T>::quiet_NaN());
  std::vector<T*> a = rows_of(problem.a, first_row + rows, problem.depth);
  a.erase(a.begin(), a.begin() + first_row);
  const std::vector<T*> to = rows_of(out, rows, problem.columns());
  Product<T> product;
  product.operand = {a.data(), 1, packed.data(), problem.depth};
  product.gates = static_cast<int>(problem.gates);
  product.units = problem.units;
  product.rows = rows;
  product.panels = {0, panels_for(problem.units, kernels.lanes)};
  product.bias = problem.bias.data();
  product.out = to.data();
  kernels.product(product);
  return out;
}

// Calls test(problem) for every number of gates, and rows and units below, at and above the tile.
template <class T, class F>
void for_sizes(const Kernels<T>& kernels, F test) {
  const Index lanes = kernels.lanes, tile = kernels.rows_of_tile(4);
  for (Index gates = 1; gates <= 4; ++gates) {
    for (const Index units : {Index(1), lanes - 1, lanes, lanes + 1, 7 * lanes + 1}) {
      // Up to 8 rows may be one group, whose gates are then multiplied in halves.
      for (const Index rows :
           {Index(0), Index(1), tile - 1, tile, tile + 1, Index(5), Index(6), Index(8), Index(17)}) {
        for (const Index depth : {Index(1), Index(6)}) {
          Problem<T> problem(gates, units, rows, depth);
          test(problem);
        }
      }
    }
  }
}

template <class T>
void check_product(const Kernels<T>& kernels) {
  for_sizes(kernels, [&](Problem<T>& p) {
    const std::vector<T> out = run(kernels, p, 0, p.rows);
    for (Index row = 0; row < p.rows; ++row) {
      for (Index column = 0; column < p.columns(); ++column) {
        const long double exact = static_cast<long double>(p.bias[at(column)]) + p.exact(row, column);
        CHECK_NEAR(out[at(row * p.columns() + column)], exact, p.tolerance());
      }
      const std::vector<T> alone = run(kernels, p, row, 1);
      CHECK(std::equal(alone.begin(), alone.end(), out.begin() + row * p.columns()));  // bit for bit
    }
  });
}

template <class T>
void check_start_and_range(const Kernels<T>& kernels) {
  const Index lanes = kernels.lanes;
  Problem<T> p(2, 4 * lanes - 1, 3, 5);
  const std::vector<T> packed = pack(p.w, p.gates, p.units, p.depth, lanes);
  std::vector<T> transposed(at(p.depth * p.rows)), out = random<T>(p.rows * p.columns(), 4),
                                                   more = random<T>(p.rows * p.columns(), 5);
  for (Index row = 0; row < p.rows; ++row) {
    for (Index k = 0; k < p.depth; ++k) transposed[at(k * p.rows + row)] = p.a[at(row * p.depth + k)];
  }
  const std::vector<T> start = out;
  const std::vector<T*> a = rows_of(transposed, p.rows, 1), to = rows_of(out, p.rows, p.columns()),
                        plus = rows_of(more, p.rows, p.columns());
  Product<T> product;
  product.operand = {a.data(), p.rows, packed.data(), p.depth};  // k steps over rows: the transposed array
  product.gates = 2;
  product.units = p.units;
  product.rows = p.rows;
  product.panels = {1, 3};
  product.add = to.data();
  product.add_more = plus.data();
  product.out = to.data();
  kernels.product(product);
  for (Index row = 0; row < p.rows; ++row) {
    for (Index column = 0; column < p.columns(); ++column) {
      const std::size_t i = at(row * p.columns() + column);
      const Index panel = column % p.units / lanes;
      if (panel == 1 || panel == 2) {
        const long double exact = static_cast<long double>(start[i]) + static_cast<long double>(more[i]);
        CHECK_NEAR(out[i], exact + p.exact(row, column), 2 * p.tolerance());
      } else {
        CHECK(out[i] == start[i]);
      }
    }
  }
}

// In place, rows further apart than they are long; between them, and in other panels, nothing changes.
template <class T>
void check_add_product(const Kernels<T>& kernels) {
  for_sizes(kernels, [&](Problem<T>& p) {
    if (p.gates > 1) return;
    const Index lanes = kernels.lanes, panels = panels_for(p.units, lanes), stride = p.units + 3;
    const std::vector<T> packed = pack(p.w, p.gates, p.units, p.depth, lanes);
    const std::vector<T*> a = rows_of(p.a, p.rows, p.depth);
    for (const Range range :
         {Range{0, panels}, Range{panels / 2, panels}, Range{0, panels / 2}, Range{panels, panels}}) {
      std::vector<T> out = random<T>(p.rows * stride, 4);
      const std::vector<T> start = out;
      AddProduct<T> product;
      product.operand = {a.data(), 1, packed.data(), p.depth};
      product.units = p.units;
      product.rows = p.rows;
      product.panels = range;
      product.out = out.data();
      product.stride = stride;
      kernels.add_product(product);
      for (Index row = 0; row < p.rows; ++row) {
        for (Index column = 0; column < stride; ++column) {
          const std::size_t i = at(row * stride + column);
          const Index panel = column / lanes;
          if (column < p.units && panel >= range.first && panel < range.last) {
            CHECK_NEAR(out[i], static_cast<long double>(start[i]) + p.exact(row, column), p.tolerance());
          } else {
            CHECK(out[i] == start[i]);
          }
        }
      }
    }
  });
}

template <class T>
void check_gather(const Kernels<T>& kernels) {
  for_sizes(kernels, [&](Problem<T>& p) {
    // The one-hot product: the depth is the vocabulary.
    std::vector<std::int64_t> tokens;
    std::fill(p.a.begin(), p.a.end(), T(0));
    for (Index row = 0; row < p.rows; ++row) {
      tokens.push_back((row * 5 + 2) % p.depth);
      p.a[at(row * p.depth + tokens.back())] = 1;
    }
    const std::vector<T> packed = pack(p.w, p.gates, p.units, p.depth, kernels.lanes);
    std::vector<T> out(at(p.rows * p.columns()));
    const std::vector<T*> to = rows_of(out, p.rows, p.columns());
    Gather<T> gather;
    gather.tokens = tokens.data();
    gather.panels = packed.data();
    gather.depth = p.depth;
    gather.gates = static_cast<int>(p.gates);
    gather.units = p.units;
    gather.rows = p.rows;
    gather.range = {0, panels_for(p.units, kernels.lanes)};
    gather.bias = p.bias.data();
    gather.out = to.data();
    kernels.gather(gather);
    CHECK(out == run(kernels, p, 0, p.rows));  // bit for bit
  });
}

template <class T>
void check_pack_rows(const Kernels<T>& kernels) {
  const Index lanes = kernels.lanes;
  for (const Index units : {Index(1), lanes - 1, lanes, 2 * lanes + 1}) {
    const Index depth = 3, panels = panels_for(units, lanes);
    std::vector<T> array = random<T>(depth * units, 6);
    const std::vector<T*> from = rows_of(array, depth, units);
    std::vector<T> transposed(at(units * depth)), out(at(panels * depth * lanes), T(-1));
    for (Index k = 0; k < depth; ++k) {
      for (Index u = 0; u < units; ++u) transposed[at(u * depth + k)] = array[at(k * units + u)];
    }
    PackRows<T> rows;
    rows.rows = from.data();
    rows.depth = depth;
    rows.units = units;
    rows.panels = {0, panels};
    rows.out = out.data();
    kernels.pack_rows(rows);
    CHECK(out == pack(transposed, 1, units, depth, lanes));
  }
}

template <class T>
void check_column_sum(const Kernels<T>& kernels) {
  const Index units = 2 * kernels.lanes + 1, rows = 4, first = 1;
  for (const bool weighted : {false, true}) {
    std::vector<T> a = random<T>(rows * units, 7), b = random<T>(rows * units, 8), out = random<T>(units, 9);
    const std::vector<T> start = out;
    const std::vector<T*> factors = rows_of(b, rows, units);
    ColumnSum<T> sum;
    sum.a = a.data();
    sum.stride = units;
    sum.b = weighted ? factors.data() : nullptr;
    sum.rows = rows;
    sum.first = first;
    sum.last = units;
    sum.out = out.data();
    kernels.column_sum(sum);
    CHECK(out[0] == start[0]);
    for (Index u = first; u < units; ++u) {
      long double exact = static_cast<long double>(start[at(u)]);
      for (Index row = 0; row < rows; ++row) {
        const std::size_t i = at(row * units + u);
        exact += static_cast<long double>(a[i]) * (weighted ? static_cast<long double>(b[i]) : 1);
      }
      CHECK_NEAR(out[at(u)], exact, 2 * std::numeric_limits<T>::epsilon() * 25);
    }
  }
}

}  // namespace

TEST(product_at_all_sizes) {
  for_all([](const auto& kernels) { check_product(kernels); });
}
TEST(product_start_stride_and_range) {
  for_all([](const auto& kernels) { check_start_and_range(kernels); });
}
TEST(product_added_in_place) {
  for_all([](const auto& kernels) { check_add_product(kernels); });
}
TEST(product_of_one_hot_rows_is_gather) {
  for_all([](const auto& kernels) { check_gather(kernels); });
}
TEST(product_pack_rows) {
  for_all([](const auto& kernels) { check_pack_rows(kernels); });
}
TEST(product_column_sum) {
  for_all([](const auto& kernels) { check_column_sum(kernels); });
}
