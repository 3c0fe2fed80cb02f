// A stack's forward and backward: memory laid out, layers and directions run on the threads there are, and
// what explain() says of it.
#include <algorithm>

#include "core/check.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "ops/network.h"

namespace fastrnn {

using cpu::Share;
using cpu::SpinBarrier;
using cpu::Split;
using cpu::Team;

namespace {

template <class T>
void zero_padding(const Rows<T>& rows, const Index* lengths, Index steps, Index batch, Index width) {
  if (!lengths || !rows) return;
  for (Index b = 0; b < batch; ++b) {
    for (Index t = lengths[b]; t < steps; ++t) std::fill_n(rows.at(t, b), width, T(0));
  }
}

// What every direction of a layer is told, forward and backward.
template <class T>
void describe(cpu::Sequence<T>& call, const Network& network, Index part, const Arguments<T>& args,
              const cpu::Schedule& schedule) {
  call.shape = network.shape(part / network.directions);
  call.schedule = &schedule;
  call.reverse = part % network.directions == 1;
  call.batch = args.batch;
  call.tokens = part < network.directions ? args.tokens : nullptr;
  call.reset = args.reset;
}

// What forward saves and backward reads.
template <class T>
void attach(cpu::Sequence<T>& call, const Reserve<T>& reserve, Index part) {
  const typename Reserve<T>::Part saved = reserve.part(part);
  call.gates = saved.gates;
  call.cells = saved.cells;
  call.segment = reserve.segment();
  call.kept_cells = saved.kept_cells;
}

// Dropout of a layer's input, that is of the outputs of the layer below; layer 0 has none.
template <class T>
Dropout input_mask(const Network& network, Index layer, const Arguments<T>& args) {
  return Dropout::make(network.dropout, args.seed, args.call, layer - 1, network.directions);
}

// weight_ih (G*H, I) += from (I, G*H), transposed.
template <class T>
void add_transposed(const T* from, const LayerShape& shape, T* weight_ih, const Share& share) {
  const Index rows = shape.gate_rows();
  const cpu::Range mine = share.slice(rows);
  for (Index r = mine.first; r < mine.last; ++r) {
    for (Index i = 0; i < shape.input; ++i) weight_ih[r * shape.input + i] += from[i * rows + r];
  }
}

// The gradient of a layer's input: the second direction's is added, then dropped where its mask dropped x.
template <class T>
void finish_dx(const Rows<T>& dx, const Rows<T>& second_dx, const Dropout* mask,
               const cpu::Schedule& schedule, const LayerShape& shape, const Share& share) {
  for (Index j = 0; j < schedule.batch(); ++j) {
    const Index b = schedule.row(j);
    const cpu::Range mine = share.slice(schedule.length(j));
    for (Index t = mine.first; t < mine.last; ++t) {
      T* row = dx.at(t, b);
      if (second_dx) {
        const T* more = second_dx.at(t, b);
        for (Index i = 0; i < shape.input; ++i) row[i] += more[i];
      }
      if (mask) mask->apply(row, row, t, b, shape.input / mask->directions);
    }
  }
}

// How the team divides one layer; side by side: each direction has threads of its own.
struct Sharing {
  bool side_by_side = false;
  Split split;
};

// Runs run(direction, share) for every direction of one layer.
template <class Run>
void run_directions(Index directions, const Sharing& sharing, Team& team, Run run) {
  const Split& split = sharing.split;
  SpinBarrier barriers[2] = {SpinBarrier(split.threads), SpinBarrier(split.threads)};
  const auto work = [&](int tid) {
    const int group = tid / split.threads;
    if (group > (sharing.side_by_side ? 1 : 0)) return;
    const Share share{tid % split.threads, split.threads, split.by_units,
                      split.threads > 1 ? &barriers[group] : nullptr};
    if (sharing.side_by_side) {
      run(group, share);
    } else {
      for (Index d = 0; d < directions; ++d) run(d, share);
    }
  };
  if (split.threads > 1 || sharing.side_by_side) {
    team.run(work);
  } else {
    work(0);
  }
}

// Runs work(share) for a share of each thread of the team.
template <class Work>
void deal_out(Team& team, Work work) {
  team.run([&](int tid) { work(Share{tid, team.size()}); });
}

template <class W>
Sharing share_out(const LayerShape& shape, Index steps, Index batch, Index directions,
                  const cpu::ForwardKernels<W>& kernels, int threads) {
  auto choose = [&](int n) {
    return cpu::choose_split(shape, steps, batch, kernels.lanes, kernels.rows_of_tile(shape.gates()), n);
  };
  if (directions == 2 && threads >= 2 && cpu::worth_threads(shape, steps, 2 * batch)) {
    return {true, choose(threads / 2)};
  }
  return {false, choose(threads)};
}

// The most threads that any layer has work for: a call that needs one thread takes no pool and starts none.
template <class W>
int threads_wanted(const Network& network, Index steps, Index batch, const cpu::ForwardKernels<W>& kernels) {
  int most = 1;
  for (Index layer = 0; layer < std::min<Index>(network.layers, 2);
       ++layer) {  // all above the first are alike
    const Sharing s =
        share_out(network.shape(layer), steps, batch, network.directions, kernels, cpu::num_threads());
    most = std::max(most, s.split.threads * (s.side_by_side ? 2 : 1));
  }
  return most;
}

}  // namespace

template <class W>
void forward(const Weights<W>& weights, const ForwardArguments<Compute<W>>& args,
             Reserve<Compute<W>>* reserve, Scratch& scratch) {
  using T = Compute<W>;
  FRNN_CHECK(!reserve || !cpu::kQuantized<W>, "quantised weights are for inference");
  const Network& network = weights.network();
  const cpu::ForwardKernels<W>& kernels = weights.kernels();
  const Index B = args.batch, R = network.first.recurrent(), H = network.first.hidden;
  const Index state_batch = args.state_rows ? args.state_batch : B;
  network.check_call(args.steps, B);
  Team team(threads_wanted(network, args.steps, B, kernels));
  if (reserve) reserve->layout(network, args.steps, B);
  scratch.schedule.set(args.steps, B, args.lengths);
  zero_padding(args.y, args.lengths, args.steps, B, network.output());

  Dropout mask;
  cpu::ForwardCall<W> calls[2];
  Sharing sharing;
  Rows<const T> x = args.x;
  Rows<T> y;
  // In inference the layers write in turn to y and to one more array, so that the last one writes to y.
  const bool one_more = !reserve && network.layers > 1;
  const auto prepare = [&](Index layer, Arena arena) {
    T* other = one_more ? arena.take<T>(args.steps * B * network.output()) : nullptr;
    const bool to_y = layer + 1 == network.layers || (one_more && (network.layers - layer) % 2 == 1);
    y = to_y ? args.y : contiguous(reserve ? reserve->output(layer) : other, B, network.output());
    mask = input_mask(network, layer, args);
    sharing = share_out(network.shape(layer), args.steps, B, network.directions, kernels, team.size());
    for (Index d = 0; d < network.directions; ++d) {
      const Index part = layer * network.directions + d;
      cpu::ForwardCall<W>& call = calls[d];
      call = {};
      describe<T>(call, network, part, args, scratch.schedule);
      call.kernels = &kernels;
      call.weights = &weights.part(part);
      call.x = x;
      call.dropout = reserve && layer > 0 && network.dropout > 0 ? &mask : nullptr;
      call.state_rows = args.state_rows;
      call.h0 = offset(args.h0, part * state_batch * R);
      call.c0 = offset(args.c0, part * state_batch * H);
      call.h_n = offset(args.h_n, part * state_batch * R);
      call.c_n = offset(args.c_n, part * state_batch * H);
      call.y = columns_from(y, d * R);
      if (reserve) attach(call, *reserve, part);
      call.layout(arena, sharing.split.threads);
    }
    return arena.used();
  };
  std::size_t most = 0;
  for (Index layer = 0; layer < network.layers; ++layer) most = std::max(most, prepare(layer, Arena()));
  void* memory = scratch.buffer.reserve(most);
  for (Index layer = 0; layer < network.layers; ++layer) {
    prepare(layer, Arena(memory));
    run_directions(network.directions, sharing, team,
                   [&](Index d, const Share& share) { cpu::forward(calls[d], share); });
    x = {y.data, y.time_stride, y.batch_stride};
  }
}

template <class T>
void backward(const Network& network, const BackwardArguments<T>& args, const Reserve<T>& reserve,
              Scratch& scratch) {
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  const Index B = args.batch, R = network.first.recurrent(), H = network.first.hidden,
              width = network.output();
  Team team(threads_wanted(network, args.steps, B, kernels));
  scratch.schedule.set(args.steps, B, args.lengths);
  const std::vector<Index> sizes = network.parameter_sizes();
  zero_padding(args.dx, args.lengths, args.steps, B, network.first.input);

  Dropout mask;
  cpu::BackwardCall<T> calls[2];
  cpu::TransposedLayer<T> transposed[2];
  cpu::PackedLayer<T> again[2];  // with segments, whose gates are computed again
  Sharing sharing;
  Rows<const T> dy = args.dy;
  // Each direction writes a dx of its own, so that they need not wait for each other; the first one's becomes
  // the sum.
  Rows<T> dx, second_dx;
  const auto prepare = [&](Index layer, Arena arena) {
    const LayerShape shape = network.shape(layer);
    // dL/dy of the layers below, in turn in one of two arrays.
    T* between[2] = {};
    for (T*& array : between) array = network.layers > 1 ? arena.take<T>(args.steps * B * width) : nullptr;
    dx = layer > 0 ? contiguous(between[layer % 2], B, width) : args.dx;
    const bool input_needed = layer > 0 || args.dx;
    second_dx = {};
    if (input_needed && network.directions == 2)
      second_dx = contiguous(arena.take<T>(args.steps * B * shape.input), B, shape.input);
    mask = input_mask(network, layer, args);
    sharing = share_out(shape, args.steps, B, network.directions, kernels, team.size());
    for (Index d = 0; d < network.directions; ++d) {
      const Index part = layer * network.directions + d;
      cpu::BackwardCall<T>& call = calls[d];
      call = {};
      describe<T>(call, network, part, args, scratch.schedule);
      call.kernels = &kernels;
      transposed[d] = cpu::TransposedLayer<T>(arena, shape, kernels.lanes, input_needed);
      call.weights = &transposed[d];
      if (reserve.segment()) again[d] = cpu::PackedLayer<T>(arena, shape, kernels.lanes);
      call.forward_weights = &again[d];
      call.parameters = part_of<LayerParameters<T>>(network, args.parameters, part);
      call.gradients = part_of<cpu::LayerGradients<T>>(network, args.gradients, part);
      if (call.tokens)
        call.gradients.weight_ih_transposed = arena.take_zeroed<T>(shape.input * shape.gate_rows());
      const Rows<const T> below =
          contiguous<const T>(layer > 0 ? reserve.output(layer - 1) : nullptr, B, width);
      call.x = layer > 0 ? below : args.x;
      call.dropout = layer > 0 && network.dropout > 0 ? &mask : nullptr;
      call.y = columns_from(
          layer + 1 == network.layers ? args.y : contiguous<const T>(reserve.output(layer), B, width), d * R);
      attach(call, reserve, part);
      call.h0 = offset(args.h0, part * B * R);
      call.c0 = offset(args.c0, part * B * H);
      call.dy = columns_from(dy, d * R);
      call.dh_n = offset(args.dh_n, part * B * R);
      call.dc_n = offset(args.dc_n, part * B * H);
      call.dx = d == 0 ? dx : second_dx;
      call.dh0 = offset(args.dh0, part * B * R);
      call.dc0 = offset(args.dc0, part * B * H);
      call.layout(arena, sharing.split.threads);
    }
    return arena.used();
  };
  std::size_t most = 0;
  for (Index layer = 0; layer < network.layers; ++layer) most = std::max(most, prepare(layer, Arena()));
  void* memory = scratch.buffer.reserve(most);
  for (Index layer = network.layers; layer-- > 0;) {
    prepare(layer, Arena(memory));
    deal_out(team, [&](const Share& share) {
      for (Index d = 0; d < network.directions; ++d) {
        const cpu::BackwardCall<T>& call = calls[d];
        transposed[d].pack(call.shape, kernels, call.parameters, share);
        if (reserve.segment()) again[d].pack(call.shape, kernels.lanes, call.parameters, share);
        const Index each = network.parameters_per_part(), first = (layer * network.directions + d) * each;
        for (Index i = first; i < first + each; ++i) {
          const auto place = static_cast<std::size_t>(i);
          const cpu::Range mine = share.slice(sizes[place]);
          std::fill(args.gradients[place] + mine.first, args.gradients[place] + mine.last, T(0));
        }
      }
    });
    run_directions(network.directions, sharing, team,
                   [&](Index d, const Share& share) { cpu::backward(calls[d], share); });
    const bool dropped = layer > 0 && network.dropout > 0;
    if (second_dx || dropped || calls[0].tokens) {
      deal_out(team, [&](const Share& share) {
        for (const cpu::BackwardCall<T>& call : calls) {
          if (call.tokens)
            add_transposed(call.gradients.weight_ih_transposed, call.shape, call.gradients.weight_ih, share);
        }
        if (dx) finish_dx(dx, second_dx, dropped ? &mask : nullptr, scratch.schedule, calls[0].shape, share);
      });
    }
    dy = {dx.data, dx.time_stride, dx.batch_stride};
  }
}

// ---- explain

namespace {

// What a training call keeps for backward beside x and y.
template <class T>
std::string saved_text(const LayerShape& shape, Index steps, Index batch, Index checkpoint) {
  const bool lstm = shape.cell == Cell::lstm;
  const Index segment = segment_steps<T>(shape, steps, batch, checkpoint);
  if (!segment && shape.reserved_gates()) return lstm ? "gates and c of every step" : "gates of every step";
  const std::string count = std::to_string(segment);
  const std::string kept = lstm ? "c every " + count + " steps" : "nothing beside y";
  return segment ? kept + "; backward computes the gates again, " + count + " steps at a time" : kept;
}

// How weights are stored, and where that is not as they are computed, how they are multiplied and why so.
template <class W>
std::string weights_text() {
  if constexpr (!cpu::kQuantized<W>) {
    return std::is_same_v<W, double> ? "float64" : "float32";
  } else {
    constexpr bool bytes = sizeof(W) == 1;
    const cpu::Isa isa = cpu::current_isa();
    const std::string type = bytes ? "int8" : "bfloat16";
    if (bytes ? cpu::dots_int8(isa) : cpu::dots_bfloat16(isa))
      return type + ", multiplied by " + current_kernels<W>().name;
    return type + ", widened to " + (bytes ? "16 bits" : "float32") + " for " + cpu::name(isa) +
           ": the CPU has no " + (bytes ? "VNNI" : "BF16") + " of this width, or it is not allowed";
  }
}

}  // namespace

template <class W>
std::map<std::string, std::string> explain(const Network& network, Index steps, Index batch, bool training,
                                           bool tokens, Index checkpoint) {
  const LayerShape& first = network.first;
  const Table<W>& kernels = current_kernels<W>();
  const auto sharing_of = [&](Index layer) {
    return share_out(network.shape(layer), steps, batch, network.directions, kernels, cpu::num_threads());
  };
  const auto thread_count = [&](Index layer) {
    const Sharing s = sharing_of(layer);
    return std::to_string(s.split.threads * (s.side_by_side ? 2 : 1));
  };
  const auto split_text = [&](Index layer) {
    const Sharing s = sharing_of(layer);
    return (s.side_by_side ? "both directions side by side; within each: " : "") +
           std::string(s.split.reason);
  };
  // All layers above the first are alike.
  const auto of_layers = [&](const auto& text) {
    const std::string lowest = text(0), above = text(network.layers - 1);
    return above == lowest ? lowest : lowest + "; in the layers above the first: " + above;
  };
  const Index panels = cpu::panel_count(first.hidden, kernels.lanes);
  std::string kernel = first.cell == Cell::lstm ? "lstm" : first.cell == Cell::gru ? "gru" : "elman";
  kernel += training ? "_fwd_train" : "_fwd_infer";
  const auto input_text = [&](Index layer) -> std::string {
    if (layer == 0 && tokens) return "columns of W_ih gathered, no input product";
    const Split split = sharing_of(layer).split;
    const Index rows = split.by_units ? batch : (batch + split.threads - 1) / split.threads;
    return cpu::fuses_input(network.shape(layer), rows, false, kernels)
               ? "input product in the step's own pass"
               : "input product per block of steps";
  };
  std::string products = "1 recurrent product per step, activations and state update fused into it";
  if (first.cell == Cell::gru && !first.reset_after)
    products = "2 products per step: the candidate needs all of r * h (reset_after=False)";
  if (first.peephole == Peephole::full)
    products = "2 products per step: the output gate needs all of the new c (peephole=\"full\")";
  if (first.projection) products += "; 1 more for the projection";
  std::map<std::string, std::string> report{
      {"kernel", kernel},
      {"isa", std::string(cpu::name(cpu::current_isa())) + ", " + std::to_string(kernels.lanes) + " lanes"},
      {"isa_reason", cpu::current_isa() == cpu::available_isas().back() ? "the widest this CPU has"
                                                                        : "forced by FASTRNN_ISA or set_isa"},
      {"dtype", std::is_same_v<W, double> ? "float64" : "float32"},
      {"weights", weights_text<W>()},
      {"input", of_layers(input_text)},
      {"products", products},
      {"tile", std::to_string(kernels.rows_of_tile(first.gates())) + " rows; " + std::to_string(panels) +
                   " panels of " + std::to_string(kernels.lanes) + " units, " + std::to_string(first.hidden) +
                   " of " + std::to_string(panels * kernels.lanes) + " used"},
      {"threads", of_layers(thread_count)},
      {"split", of_layers(split_text)},
  };
  if (training) report.emplace("saved", saved_text<Compute<W>>(first, steps, batch, checkpoint));
  return report;
}

template std::map<std::string, std::string> explain<float>(const Network&, Index, Index, bool, bool, Index);
template std::map<std::string, std::string> explain<double>(const Network&, Index, Index, bool, bool, Index);
template std::map<std::string, std::string> explain<bfloat16_t>(const Network&, Index, Index, bool, bool,
                                                                Index);
template std::map<std::string, std::string> explain<std::int8_t>(const Network&, Index, Index, bool, bool,
                                                                 Index);

template void forward(const Weights<float>&, const ForwardArguments<float>&, Reserve<float>*, Scratch&);
template void forward(const Weights<double>&, const ForwardArguments<double>&, Reserve<double>*, Scratch&);
template void forward(const Weights<bfloat16_t>&, const ForwardArguments<float>&, Reserve<float>*, Scratch&);
template void forward(const Weights<std::int8_t>&, const ForwardArguments<float>&, Reserve<float>*, Scratch&);
template void backward(const Network&, const BackwardArguments<float>&, const Reserve<float>&, Scratch&);
template void backward(const Network&, const BackwardArguments<double>&, const Reserve<double>&, Scratch&);

}  // namespace fastrnn
