// What forward.cpp, backward.cpp and stream.cpp share: launches of the sizes that the plan gives, products,
// and the description of one direction of one layer.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/buffers.h"
#include "core/check.h"
#include "core/network.h"
#include "core/philox.h"
#include "cuda/cublas.h"
#include "cuda/gemm.h"
#include "cuda/kernels/dropout.h"
#include "cuda/kernels/pointwise.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/split_float.h"
#include "cuda/kernels/sums.h"
#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/stack.h"

namespace fastrnn::cuda {

// Gates kept per (t, b, unit) for backward. Unlike the CPU, GRU reset-after keeps q = W_hn h + b_hn as well.
inline Index saved_gates(const LayerShape& s) {
  return s.cell == Cell::gru && s.reset_after ? 4 : s.reserved_gates();
}

// 16-bit types have arrays of T and of float; the others of one type.
template <class T>
inline constexpr bool kNarrow = !std::is_same_v<T, Compute<T>>;

template <class T>
Operand plain(const T* data, Index stride) {
  return {data, stride, false};
}
template <class T>
Operand transposed(const T* data, Index stride) {
  return {data, stride, true};
}

// Do the T*B rows lie one after the other, in the order of [T,B], `stride` apart, as a product wants them?
template <class T>
bool is_flat(const Rows<T>& rows, Index steps, Index batch, Index width, Index& stride) {
  stride = steps * batch <= 1 ? width : batch > 1 ? rows.batch_stride : rows.time_stride;
  return stride >= width && (batch <= 1 || steps <= 1 || rows.time_stride == batch * stride);
}

class Queue {
 public:
  Queue(Stream stream, const Plan& plan) : stream_(stream), plan_(plan) {}

  Stream stream() const { return stream_; }
  const Plan& plan() const { return plan_; }

  // A pointwise kernel over steps x rows x units.
  template <class Kernel>
  void run(Index steps, Index rows, Index units, const typename Kernel::Params& params) const {
    launch<Kernel>(stream_, grid(Pieces(steps, rows, units).all), params);
  }
  // One for a single step.
  template <class Kernel>
  void run(Index rows, Index units, const typename Kernel::Params& params) const {
    run<Kernel>(1, rows, units, params);
  }
  // A kernel that walks over tiles.
  template <class Kernel>
  void run_tiles(Index tiles, const typename Kernel::Params& params) const {
    Grid g = grid(tiles);
    g.shared = typename Kernel::Layout().shared.bytes();
    launch<Kernel>(stream_, g, params);
  }

  // C (compute type) = A B, elements T: a product of one step.
  template <class T>
  void step_product(Index rows, Index columns, Index depth, Operand a, Operand b, Compute<T>* c,
                    Index c_stride) const {
    gemm(stream_, describe<T>(rows, columns, depth, a, b, c, c_stride, kNarrow<T>));
  }

  // A product over all steps; `split` has split_bytes of memory. Out is T, or the compute type.
  template <class T, class Out>
  void product(Index rows, Index columns, Index depth, Operand a, Operand b, Out* c, Index c_stride,
               void* split, bool add = false) const {
    Gemm g = describe<T>(rows, columns, depth, a, b, c, c_stride, !std::is_same_v<Out, T>);
    g.add = add;
    if constexpr (std::is_same_v<T, float>) {
      if (plan_.splits(rows, columns, depth)) {
        bfloat16_t* const left = static_cast<bfloat16_t*>(split);
        bfloat16_t* const right = left + 3 * rows * depth;
        g.a = split_operand(a, rows, depth, false, left);
        g.b = split_operand(b, columns, depth, true, right);
        g.depth = 3 * depth;
        g.dtype = DType::bfloat16;
        g.wide_out = true;
      }
    }
    gemm(stream_, g);
  }
  template <class T>
  Index split_bytes(Index rows, Index columns, Index depth) const {
    if (!std::is_same_v<T, float> || !plan_.splits(rows, columns, depth)) return 0;
    return 3 * depth * (rows + columns) * static_cast<Index>(sizeof(bfloat16_t));
  }

 private:
  Grid grid(Index pieces) const {
    FRNN_CHECK(pieces < Index{1} << 31, "T, B and H together exceed what one launch can count");
    Grid g;
    g.blocks = static_cast<int>(std::min<Index>(pieces, plan_.most_blocks));
    return g;
  }

  template <class T, class Out>
  Gemm describe(Index rows, Index columns, Index depth, Operand a, Operand b, Out* c, Index c_stride,
                bool wide_out) const {
    Gemm g;
    g.rows = rows;
    g.columns = columns;
    g.depth = depth;
    g.a = a;
    g.b = b;
    g.c = c;
    g.c_stride = c_stride;
    g.dtype = dtype_of<T>;
    g.wide_out = wide_out;
    g.tf32 = plan_.products == Products::tf32;
    return g;
  }

  // Splits an operand whose depth runs along memory, or across it.
  Operand split_operand(const Operand& from, Index across, Index depth, bool second, bfloat16_t* to) const {
    const bool depth_inner = from.transposed == second;
    SplitFloat::Params params;
    params.rows = depth_inner ? across : depth;
    params.columns = depth_inner ? depth : across;
    params.from = static_cast<const float*>(from.data);
    params.from_stride = from.stride;
    params.to = to;
    params.second = second;
    params.depth_rows = !depth_inner;
    run<SplitFloat>(params.rows, params.columns, params);
    return {to, depth_inner ? 3 * depth : across, from.transposed};
  }

  Stream stream_;
  const Plan& plan_;
};

// What a call asks of a plan, but for how it is to be run.
template <class T>
Request request_for(const Network& network, const Arguments<T>& args, const Options& options) {
  Request request;
  request.network = network;
  request.steps = args.steps;
  request.batch = args.batch;
  request.dtype = dtype_of<T>;
  request.tokens = args.tokens != nullptr;
  request.products = options.products;
  return request;
}

// Fills in what both passes know of one direction of one layer; `key`, of all masks, is null in inference.
template <class T, class Part>
void describe_part(Part& part, const Network& network, const std::vector<const T*>& parameters,
                   const Arguments<T>& args, Index layer, Index direction, const std::uint64_t* key) {
  const Index number = layer * network.directions + direction;
  part.shape = network.shape(layer);
  part.weights = part_of<LayerParameters<T>>(network, parameters, number);
  part.walk = {args.lengths, args.reset, args.steps, args.batch, direction == 1};
  part.noise = {network.state_noise(number, 1, key != nullptr, 0, 0), key};
  if (layer == 0) {
    part.x = args.x;
    part.tokens = args.tokens;
  } else if (key && network.dropout > 0) {
    part.x_mask = {Dropout::make(network.dropout, 0, 0, layer - 1, network.directions), key};
  }
}

// What every kernel of one step is given of its part.
template <class Kernel, class Part>
typename Kernel::Params step_params(const Part& part, Index step, Index units) {
  typename Kernel::Params p;
  p.walk = part.walk;
  p.step = step;
  p.units = units;
  p.noise = part.noise;
  return p;
}

// The scratch that the largest layer of a call takes.
template <class Call>
std::size_t most_scratch(const Call& call, const Queue& queue) {
  std::size_t most = 0;
  for (Index layer = 0; layer < call.network.layers; ++layer) {
    Arena measure;
    call.layer(layer, queue, measure);
    most = std::max(most, measure.used());
  }
  return most;
}

// What kernels clamp is an error for those who would rather wait and know (FASTRNN_CUDA_SYNC=1): throws
// std::invalid_argument for a length, token or row that can't be. Nothing while a graph is captured.
template <class T>
void check_numbers(Stream stream, const Network& network, const Arguments<T>& args);
void check_rows(Stream stream, const Index* rows, Index count, Index batch);

// to [T,B,width] = rows with their mask, if there is one, and zeros at padding. May be in place.
template <class T>
void copy_rows(const Queue& queue, const Walk& walk, const Rows<const T>& from, Index width,
               const KeyedDropout& mask, const Rows<T>& to) {
  typename GatherRows<T, T>::Params p;
  p.walk = walk;
  p.width = width;
  p.from = from;
  p.to = to;
  p.mask = mask;
  queue.run<GatherRows<T, T>>(walk.steps, walk.batch,
                              GatherRows<T, T>::groups(width, mask.dropout.directions), p);
}

// x as the left operand of a product over all steps: where it lies, or, given memory for a copy, as flat rows
// with its mask and zeros at padding.
template <class T>
Operand input_operand(const Queue& queue, const Walk& walk, const Rows<const T>& x, Index width,
                      const KeyedDropout& mask, T* copy) {
  if (!copy) {
    Index stride = 0;
    is_flat(x, walk.steps, walk.batch, width, stride);
    return plain(x.data, stride);
  }
  copy_rows(queue, walk, x, width, mask, contiguous(copy, walk.batch, width));
  return plain(static_cast<const T*>(copy), width);
}

// Runs the directions of a layer, of which there are one or two: the second on a stream of its own beside the
// first, since the steps of one rarely fill a device.
template <class Part, class Body>
void run_side_by_side(const Queue& queue, const std::vector<Part>& directions, Body body) {
  if (directions.size() == 1) return body(directions[0], queue);
  Fork fork(queue.stream());
  {
    const CublasScope products(fork.side());
    body(directions[1], Queue(fork.side(), queue.plan()));
  }
  body(directions[0], queue);
  fork.join();
}
template <class Part>
void run_directions(const Queue& queue, const std::vector<Part>& directions) {
  run_side_by_side(queue, directions, [](const Part& part, const Queue& on) { part.run(on); });
}

// Gradient of W_ih (columns, vocabulary) for tokens [rows], from dG's rows, = or with `add` +=. `keys` has
// memory for 2*rows of them, `starts` for vocabulary + 1.
template <class T>
void token_gradient(const Queue& queue, const std::int64_t* tokens, Index rows, Index vocabulary, const T* dg,
                    Index dg_stride, Index columns, T* gradient, bool add, std::uint64_t* keys,
                    Index* starts) {
  FRNN_CHECK(rows < Index{1} << 32 && vocabulary < Index{1} << 31, "T*B or I exceeds what a key can hold");
  SortTokens::Params sort;
  sort.rows = rows;
  sort.tokens = tokens;
  sort.vocabulary = vocabulary;
  sort.to = keys;
  do {
    queue.run<SortTokens>(1, rows, sort);
    sort.from = sort.to;
    sort.to = sort.from == keys ? keys + rows : keys;
    ++sort.shift;
  } while (Index{1} << sort.shift < rows);
  queue.run<TokenStarts>(1, vocabulary + 1, {rows, vocabulary, sort.from, starts});
  queue.run<TokenGradient<T>>(vocabulary, columns,
                              {columns, vocabulary, sort.from, starts, dg, dg_stride, gradient, add});
}

// Forward of a whole stack. With `cells` [parts, state_batch, H], c lives there in its compute type, before
// and after, instead of in the arguments' c0 and c_n.
template <class T>
void run_forward(Stream stream, const Network& network, const std::vector<const T*>& parameters,
                 const ForwardArguments<T>& args, Compute<T>* cells, Reserve<T>* reserve,
                 const Options& options);

}  // namespace fastrnn::cuda
