// Products with quantised weights, packed as a layer packs them, for every instruction set and at sizes
// around the tile and the group of k. Every array is exactly as long as it must be: AddressSanitizer sees a
// step outside.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/schedule.h"
#include "ops/network.h"

using namespace fastrnn;
using namespace fastrnn::cpu;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

std::vector<float> random(Index n, unsigned seed) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(at(n));
  for (float& value : values) value = uniform(bits);
  return values;
}

// What W makes of the numbers of one row.
void round(bfloat16_t, float* row, Index n) {
  for (Index k = 0; k < n; ++k) row[k] = widen(narrow<bfloat16_t>(row[k]));
}
void round(std::int8_t, float* row, Index n) {
  float largest = 0;
  for (Index k = 0; k < n; ++k) largest = std::max(largest, std::fabs(row[k]));
  const Int8Scale scale = int8_scale(largest);
  for (Index k = 0; k < n; ++k) row[k] = std::nearbyint(row[k] * scale.inverse) * scale.scale;
}

// The product of `rows` rows of `a` with the input weights of a layer: out = a W^T.
template <class W>
std::vector<float> run(const ForwardKernels<W>& kernels, const PackedLayer<W>& packed,
                       const LayerShape& shape, const std::vector<float>& a, Index first, Index rows) {
  const Index bytes = kernels.round_bytes(shape.input);
  std::vector<std::vector<char>> rounded(at(rows), std::vector<char>(at(bytes)));
  std::vector<std::vector<float>> exact(at(rows)), out(at(rows), std::vector<float>(at(shape.gate_rows())));
  std::vector<const float*> from;
  std::vector<char*> to;
  std::vector<float*> results;
  for (Index row = 0; row < rows; ++row) {
    const auto begin = a.begin() + (first + row) * shape.input;
    exact[at(row)].assign(begin, begin + shape.input);
    from.push_back(exact[at(row)].data());
    to.push_back(rounded[at(row)].data());
    results.push_back(out[at(row)].data());
  }
  kernels.round_rows({from.data(), to.data(), rows, shape.input});
  Product<W> product;
  product.operand = {to.data(), 1, packed.input, shape.input};
  product.gates = static_cast<int>(shape.gates());
  product.units = shape.hidden;
  product.rows = rows;
  product.panels = {0, panel_count(shape.hidden, kernels.lanes)};
  product.out = results.data();
  kernels.product(product);
  std::vector<float> all;
  for (const std::vector<float>& row : out) all.insert(all.end(), row.begin(), row.end());
  return all;
}

template <class W>
void check(const LayerShape& shape, Index rows) {
  const ForwardKernels<W>& kernels = current_kernels<W>();
  const Index depth = shape.input, columns = shape.gate_rows();
  std::vector<float> a = random(rows * depth, 1), w = random(columns * depth, 2);
  const std::vector<float> recurrent(at(columns * shape.hidden));
  PackedLayer<W> packed;
  Arena measure;
  packed = PackedLayer<W>(measure, shape, kernels.lanes);
  Buffer memory;
  Arena arena(memory.reserve(measure.used()));
  packed = PackedLayer<W>(arena, shape, kernels.lanes);
  LayerParameters<float> parameters;
  parameters.weight_ih = w.data();
  parameters.weight_hh = recurrent.data();
  packed.pack(shape, kernels, parameters, Share{});

  const std::vector<float> out = run(kernels, packed, shape, a, 0, rows);
  for (Index row = 0; row < rows; ++row) {
    const std::vector<float> alone = run(kernels, packed, shape, a, row, 1);
    CHECK(std::equal(alone.begin(), alone.end(), out.begin() + row * columns));  // bit for bit
  }
  for (Index row = 0; row < rows; ++row) round(W{}, a.data() + row * depth, depth);
  for (Index column = 0; column < columns; ++column) round(W{}, w.data() + column * depth, depth);
  // A chain of depth products below 1, each of which may round.
  const double allowed =
      2 * std::numeric_limits<float>::epsilon() * static_cast<double>((depth + 1) * (depth + 1));
  for (Index row = 0; row < rows; ++row) {
    for (Index column = 0; column < columns; ++column) {
      double sum = 0;
      for (Index k = 0; k < depth; ++k) {
        sum += static_cast<double>(a[at(row * depth + k)]) * static_cast<double>(w[at(column * depth + k)]);
      }
      CHECK_NEAR(out[at(row * columns + column)], sum, allowed);
    }
  }
}

// For every set that this CPU has, with the instructions for quantised products that go with it and without.
template <class W>
void check_all() {
  const Isa before = current_isa();
  for (const Isa isa : available_isas()) {
    set_isa(name(isa));
    for (const bool allowed : {true, false}) {
      allow_dot_instructions(allowed);
      const ForwardKernels<W>& kernels = current_kernels<W>();
      const Index lanes = kernels.lanes;
      for (const Cell cell : {Cell::lstm, Cell::gru, Cell::rnn}) {
        for (const Index units : {Index(1), lanes - 1, lanes + 1, 5 * lanes}) {
          for (const Index depth : {Index(1), Index(2), Index(3), Index(4), lanes + 3}) {
            LayerShape shape;
            shape.cell = cell;
            shape.bias = false;
            shape.input = depth;
            shape.hidden = units;
            const Index tile = kernels.rows_of_tile(shape.gates());
            for (const Index rows : {Index(1), tile - 1, tile, tile + 1, Index(5), Index(6), Index(8)})
              check<W>(shape, rows);
          }
        }
      }
    }
  }
  allow_dot_instructions(true);
  set_isa(name(before));
}

}  // namespace

TEST(quantized_product_bfloat16) { check_all<bfloat16_t>(); }
TEST(quantized_product_int8) { check_all<std::int8_t>(); }
