// A stack's forward and backward: memory laid out, layers and directions run on the threads there are, and
// what explain() says of it.
#include <algorithm>
#include <new>
#include <optional>

#include "core/check.h"
#include "cpu/isa.h"
#include "cpu/noise.h"
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

// Recurrent dropout and zoneout of each layer; empty where there is neither.
template <class T>
void describe_noise(const Network& network, const Arguments<T>& args, bool training,
                    std::vector<StateNoise>& layers) {
  layers.clear();
  for (Index layer = 0; layer < network.layers && network.has_state_noise(training); ++layer)
    layers.push_back(network.state_noise(layer, network.directions, training, args.seed, args.call));
}

// weight_ih (G*H, I) += from (I, G*H), transposed.
template <class T>
void add_transposed(const T* from, const LayerShape& shape, T* weight_ih, const Share& share) {
  const Index rows = shape.gate_rows();
  const cpu::Range mine = share.slice(rows);
  constexpr Index together =
      128;  // rows whose lines of both arrays stay in the first cache from one i to the next
  for (Index first = mine.first; first < mine.last; first += together) {
    const Index last = std::min(first + together, mine.last);
    for (Index i = 0; i < shape.input; ++i) {
      for (Index r = first; r < last; ++r) weight_ih[r * shape.input + i] += from[i * rows + r];
    }
  }
}

// The gradient of a layer's input: the second direction's is added, then dropped where its mask dropped x.
template <class T>
void finish_dx(const cpu::Kernels<T>& kernels, const Rows<T>& dx, const Rows<T>& second_dx,
               const Dropout* mask, const cpu::Schedule& schedule, const LayerShape& shape,
               const Share& share) {
  for (Index j = 0; j < schedule.batch(); ++j) {
    const Index b = schedule.row(j);
    const cpu::Range mine = share.slice(schedule.length(j));
    for (Index t = mine.first; t < mine.last; ++t) {
      T* row = dx.at(t, b);
      T* more = second_dx.at(t, b);  // once added, memory for the mask
      kernels.add(row, more, shape.input);
      if (mask) cpu::drop<T>(kernels, *mask, t, b, shape.input, row, more, row);
    }
  }
}

// How the team divides the work: groups of threads, each on a direction or a layer of its own, and `split`
// within a group.
struct Sharing {
  bool directions = false, layers = false;  // side by side
  int groups = 1;
  Index steps = 0;  // of a layer at a time, where layers are side by side
  Split split;

  int threads() const { return groups * split.threads; }
  cpu::LayerSplit in_groups() const { return {groups, steps, split}; }
};

// What of a call decides how it is divided.
struct Extent {
  Index steps;  // of the longest row
  Index batch;
  bool tokens;
  bool segmented;  // gates are computed again in backward
};

// Runs run(direction, share) for every direction of one layer.
template <class Run>
void run_directions(Index directions, const Sharing& sharing, Team& team, Run run) {
  const Split& split = sharing.split;
  SpinBarrier barriers[2] = {SpinBarrier(split.threads), SpinBarrier(split.threads)};
  const auto work = [&](int tid) {
    const int group = tid / split.threads;
    if (group >= (sharing.directions ? sharing.groups : 1)) return;
    const Share share{tid % split.threads, split.threads, split.by_units,
                      split.threads > 1 ? &barriers[group] : nullptr};
    if (sharing.directions) {
      run(group, share);
    } else {
      for (Index d = 0; d < directions; ++d) run(d, share);
    }
  };
  if (sharing.threads() > 1) {
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
Sharing share_out(const Network& network, Index layer, const Extent& call,
                  const cpu::ForwardKernels<W>& kernels, int threads) {
  const int tile_rows = kernels.rows_of_tile(network.first.gates());
  const auto shape = [&](Index of_layer) {
    LayerShape s = network.shape(of_layer);
    if (call.tokens && of_layer == 0) s.input = 0;
    return s;
  };
  const auto choose = [&](int n) {
    return cpu::choose_split(shape(layer), call.steps, call.batch, kernels.lanes, tile_rows, n);
  };
  if (network.directions == 2) {
    if (threads < 2 || !cpu::worth_threads(shape(layer), call.steps, 2 * call.batch))
      return {false, false, 1, 0, choose(threads)};
    return {true, false, 2, 0, choose(threads / 2)};
  }
  // With segments not, since each layer would hold the gates of one.
  const cpu::LayerSplit layers =
      call.segmented
          ? cpu::LayerSplit()
          : cpu::choose_layer_split(shape(0), shape(network.layers - 1), network.layers, call.steps,
                                    call.batch, kernels.lanes, tile_rows, int{sizeof(W)}, threads);
  if (layers.groups > 1) return {false, true, layers.groups, layers.steps, layers.within};
  return {false, false, 1, 0, choose(threads)};
}

// The most threads that any layer has work for: a call that needs one thread takes no pool and starts none.
template <class W>
int threads_wanted(const Network& network, const Extent& call, const cpu::ForwardKernels<W>& kernels) {
  const auto wanted = [&](Index layer) {
    return share_out(network, layer, call, kernels, cpu::num_threads()).threads();
  };
  return std::max(wanted(0), wanted(network.layers - 1));  // all above the first are alike
}

// One layer of a forward call, and of a backward call: what its directions are told, and what that points to.
template <class W>
struct ForwardLayer {
  cpu::ForwardCall<W> calls[2];
  Dropout mask;
  Sharing sharing;
};
template <class T>
struct BackwardLayer {
  cpu::BackwardCall<T> calls[2];
  cpu::TransposedLayer<T> transposed[2];
  cpu::PackedLayer<T> again[2];  // with segments, whose gates are computed again
  Dropout mask;
  Sharing sharing;
  // Each direction writes a dx of its own, so that they need not wait for each other; the first one's becomes
  // the sum.
  Rows<T> dx, second_dx;
};

// Calls run(first) for the first of every so many layers, in memory that layout(first, arena) has handed out.
template <class Layout, class Run>
void run_stack(Index layers, Index at_once, Buffer& buffer, Layout layout, Run run) {
  std::size_t most = 0;
  for (Index first = 0; first < layers; first += at_once) most = std::max(most, layout(first, Arena()));
  void* memory = buffer.reserve(most);
  for (Index first = 0; first < layers; first += at_once) {
    layout(first, Arena(memory));
    run(first);
  }
}

// Runs run(call, steps, share) for all that is laid out: layers side by side, or the directions of one.
template <class Layer, class Run>
void run_layers(const Layer* layers, Index directions, std::optional<cpu::Wavefront>& wavefront, Index steps,
                Team& team, Run run) {
  if (wavefront) {
    team.run([&](int tid) {
      wavefront->work(tid, [&](Index place, cpu::Range some, const Share& share) {
        run(layers[place].calls[0], some, share);
      });
    });
  } else {
    run_directions(directions, layers->sharing, team,
                   [&](Index d, const Share& share) { run(layers->calls[d], {0, steps}, share); });
  }
}

// Makes `count` layers in the arena by prepare(layer, at), where `at` is the place in the order in which the
// call goes through them; an arena without memory only measures.
template <class Layer, class Prepare>
Layer* lay_out(Arena& arena, Index first, Index count, Prepare prepare) {
  static_assert(std::is_trivially_destructible_v<Layer>);
  Layer* layers = arena.take<Layer>(count);
  for (Index i = 0; i < count; ++i) {
    Layer measured{};
    prepare(layers ? *new (layers + i) Layer{} : measured, first + i);
  }
  return layers;
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
  scratch.schedule.set(args.steps, B, args.lengths);
  if (reserve) reserve->layout(network, args.steps, B);
  const Extent extent{scratch.schedule.steps(), B, args.tokens != nullptr,
                      reserve != nullptr && reserve->segment() > 0};
  Team team(threads_wanted(network, extent, kernels));
  zero_padding(args.y, args.lengths, args.steps, B, network.output());

  const Sharing of_first = share_out(network, 0, extent, kernels, team.size());
  const bool side_by_side = of_first.layers;
  const Index at_once = side_by_side ? network.layers : 1;
  // In inference the layers write in turn to y and to one more array, so that the last one writes to y.
  const bool in_turn = !reserve && network.layers > 1;
  describe_noise(network, args, reserve != nullptr, scratch.noise);
  std::optional<cpu::Wavefront> wavefront;
  ForwardLayer<W>* layers = nullptr;

  const auto layout = [&](Index first_layer, Arena arena) {
    T* other = in_turn ? arena.take<T>(args.steps * B * network.output()) : nullptr;
    const auto output = [&](Index layer) {
      const bool to_y = layer + 1 == network.layers || (in_turn && (network.layers - layer) % 2 == 1);
      return to_y ? args.y : contiguous(reserve ? reserve->output(layer) : other, B, network.output());
    };
    if (side_by_side) wavefront.emplace(arena, network.layers, of_first.in_groups(), extent.steps, in_turn);
    layers = lay_out<ForwardLayer<W>>(arena, first_layer, at_once, [&](ForwardLayer<W>& it, Index layer) {
      const Rows<T> y = output(layer);
      it.mask = input_mask(network, layer, args);
      it.sharing = share_out(network, layer, extent, kernels, team.size());
      for (Index d = 0; d < network.directions; ++d) {
        const Index part = layer * network.directions + d;
        cpu::ForwardCall<W>& call = it.calls[d];
        describe<T>(call, network, part, args, scratch.schedule);
        call.kernels = &kernels;
        call.weights = &weights.part(part);
        call.x = args.x;
        if (layer > 0) {
          const Rows<T> below = output(layer - 1);
          call.x = {below.data, below.time_stride, below.batch_stride};
        }
        call.dropout = reserve && layer > 0 && network.dropout > 0 ? &it.mask : nullptr;
        if (!scratch.noise.empty()) call.noise = &scratch.noise[static_cast<std::size_t>(layer)];
        call.state_rows = args.state_rows;
        call.h0 = offset(args.h0, part * state_batch * R);
        call.c0 = offset(args.c0, part * state_batch * H);
        call.h_n = offset(args.h_n, part * state_batch * R);
        call.c_n = offset(args.c_n, part * state_batch * H);
        call.y = columns_from(y, d * R);
        if (reserve) attach(call, *reserve, part);
        if (side_by_side) call.progress = wavefront->progress(layer);
        call.layout(arena, it.sharing.split);
      }
    });
    return arena.used();
  };
  run_stack(network.layers, at_once, scratch.buffer, layout, [&](Index) {
    run_layers(
        layers, network.directions, wavefront, extent.steps, team,
        [](const auto& call, cpu::Range steps, const Share& share) { cpu::forward(call, steps, share); });
  });
}

template <class T>
void backward(const Network& network, const BackwardArguments<T>& args, const Reserve<T>& reserve,
              Scratch& scratch) {
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  const Index B = args.batch, R = network.first.recurrent(), H = network.first.hidden,
              width = network.output();
  scratch.schedule.set(args.steps, B, args.lengths);
  const Extent extent{scratch.schedule.steps(), B, args.tokens != nullptr, reserve.segment() > 0};
  Team team(threads_wanted(network, extent, kernels));
  const std::vector<Index> sizes = network.parameter_sizes();
  zero_padding(args.dx, args.lengths, args.steps, B, network.first.input);

  const Sharing of_first = share_out(network, 0, extent, kernels, team.size());
  const bool side_by_side = of_first.layers;
  const Index at_once = side_by_side ? network.layers : 1;
  describe_noise(network, args, true, scratch.noise);
  std::optional<cpu::Wavefront> wavefront;
  BackwardLayer<T>* layers = nullptr;
  std::vector<T*> sums = args.gradients;  // of this call, which are added once they are complete

  // The last layer is the first in order.
  const auto layout = [&](Index first, Arena arena) {
    // dL/dy of the layers below, in turn in one of two arrays.
    T* between[2] = {};
    for (T*& array : between) array = network.layers > 1 ? arena.take<T>(args.steps * B * width) : nullptr;
    const auto input_gradient = [&](Index layer) {
      return layer > 0 ? contiguous(between[layer % 2], B, width) : args.dx;
    };
    if (side_by_side) wavefront.emplace(arena, network.layers, of_first.in_groups(), extent.steps, false);
    layers = lay_out<BackwardLayer<T>>(arena, first, at_once, [&](BackwardLayer<T>& it, Index place) {
      const Index layer = network.layers - 1 - place;
      const LayerShape shape = network.shape(layer);
      it.dx = input_gradient(layer);
      const bool input_needed = layer > 0 || args.dx;
      if (input_needed && network.directions == 2)
        it.second_dx = contiguous(arena.take<T>(args.steps * B * shape.input), B, shape.input);
      it.mask = input_mask(network, layer, args);
      it.sharing = share_out(network, layer, extent, kernels, team.size());
      for (Index d = 0; d < network.directions; ++d) {
        const Index part = layer * network.directions + d;
        cpu::BackwardCall<T>& call = it.calls[d];
        describe<T>(call, network, part, args, scratch.schedule);
        call.kernels = &kernels;
        it.transposed[d] = cpu::TransposedLayer<T>(arena, shape, kernels.lanes, input_needed);
        call.weights = &it.transposed[d];
        if (reserve.segment()) it.again[d] = cpu::PackedLayer<T>(arena, shape, kernels.lanes);
        call.forward_weights = &it.again[d];
        call.parameters = part_of<LayerParameters<T>>(network, args.parameters, part);
        if (args.add) {
          const Index each = network.parameters_per_part();
          for (Index p = part * each; p < (part + 1) * each; ++p) {
            const auto i = static_cast<std::size_t>(p);
            sums[i] = arena.take<T>(sizes[i]);
          }
        }
        call.gradients = part_of<cpu::LayerGradients<T>>(network, sums, part);
        if (call.tokens)
          call.gradients.weight_ih_transposed = arena.take_zeroed<T>(shape.input * shape.gate_rows());
        const Rows<const T> below =
            contiguous<const T>(layer > 0 ? reserve.output(layer - 1) : nullptr, B, width);
        call.x = layer > 0 ? below : args.x;
        call.dropout = layer > 0 && network.dropout > 0 ? &it.mask : nullptr;
        call.y = columns_from(
            layer + 1 == network.layers ? args.y : contiguous<const T>(reserve.output(layer), B, width),
            d * R);
        attach(call, reserve, part);
        if (!scratch.noise.empty()) call.noise = &scratch.noise[static_cast<std::size_t>(layer)];
        call.h0 = offset(args.h0, part * B * R);
        call.c0 = offset(args.c0, part * B * H);
        Rows<const T> dy = args.dy;
        if (layer + 1 < network.layers) {
          const Rows<T> above = input_gradient(layer + 1);
          dy = {above.data, above.time_stride, above.batch_stride};
        }
        call.dy = columns_from(dy, d * R);
        call.dh_n = offset(args.dh_n, part * B * R);
        call.dc_n = offset(args.dc_n, part * B * H);
        call.dx = d == 0 ? it.dx : it.second_dx;
        call.mask_dx = call.dropout && network.directions == 1;
        call.dh0 = offset(args.dh0, part * B * R);
        call.dc0 = offset(args.dc0, part * B * H);
        if (side_by_side) call.progress = wavefront->progress(place);
        call.layout(arena, it.sharing.split.threads);
      }
    });
    return arena.used();
  };
  run_stack(network.layers, at_once, scratch.buffer, layout, [&](Index first) {
    const Index of_layer = network.directions * network.parameters_per_part();
    // For each parameter of the layers at hand: its number, and this thread's part of it.
    const auto parameters_of = [&](const Share& share, auto use) {
      const Index end = network.layers - first;
      for (Index p = (end - at_once) * of_layer; p < end * of_layer; ++p) {
        const auto i = static_cast<std::size_t>(p);
        use(i, share.slice(sizes[i]));
      }
    };
    deal_out(team, [&](const Share& share) {
      for (Index i = 0; i < at_once; ++i) {
        BackwardLayer<T>& it = layers[i];
        for (Index d = 0; d < network.directions; ++d) {
          const cpu::BackwardCall<T>& call = it.calls[d];
          it.transposed[d].pack(call.shape, kernels, call.parameters, share);
          if (reserve.segment()) it.again[d].pack(call.shape, kernels, call.parameters, share);
        }
      }
      parameters_of(share, [&](std::size_t i, cpu::Range mine) {
        std::fill(sums[i] + mine.first, sums[i] + mine.last, T(0));
      });
    });
    run_layers(
        layers, network.directions, wavefront, extent.steps, team,
        [](const auto& call, cpu::Range steps, const Share& share) { cpu::backward(call, steps, share); });
    const BackwardLayer<T>& last = layers[at_once - 1];  // tokens are the first layer's
    if (last.second_dx || last.calls[0].tokens) {
      deal_out(team, [&](const Share& share) {
        for (const cpu::BackwardCall<T>& call : last.calls) {
          if (call.tokens)
            add_transposed(call.gradients.weight_ih_transposed, call.shape, call.gradients.weight_ih, share);
        }
        if (last.second_dx)
          finish_dx(kernels, last.dx, last.second_dx, last.calls[0].dropout, scratch.schedule,
                    last.calls[0].shape, share);
      });
    }
    if (args.add) {
      deal_out(team, [&](const Share& share) {
        parameters_of(share, [&](std::size_t i, cpu::Range mine) {
          kernels.add(args.gradients[i] + mine.first, sums[i] + mine.first, mine.last - mine.first);
        });
      });
    }
  });
}

// ---- explain

namespace {

// What a training call keeps for backward beside x and y.
std::string saved_text(const LayerShape& shape, Index steps, Index batch, Index checkpoint) {
  const bool lstm = shape.cell == Cell::lstm;
  const Index segment = segment_steps(shape, steps, batch, checkpoint);
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
  const bool segmented = training && segment_steps(first, steps, batch, checkpoint) > 0;
  const auto sharing_of = [&](Index layer) {
    return share_out(network, layer, {steps, batch, tokens, segmented}, kernels, cpu::num_threads());
  };
  const auto thread_count = [&](Index layer) { return std::to_string(sharing_of(layer).threads()); };
  const auto split_text = [&](Index layer) -> std::string {
    const Sharing s = sharing_of(layer);
    if (s.layers)
      return std::to_string(s.groups) + " layers side by side, each some steps behind the one it reads, " +
             std::to_string(s.steps) + " at a time; within each: " + s.split.reason;
    return (s.directions ? "both directions side by side; within each: " : "") + std::string(s.split.reason);
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
      {"tile", std::to_string(kernels.rows_of_tile(first.gates())) + " rows where there are many; " +
                   std::to_string(panels) + (panels == 1 ? " panel of " : " panels of ") +
                   std::to_string(kernels.lanes) + " units, " + std::to_string(first.hidden) + " of " +
                   std::to_string(panels * kernels.lanes) + " used"},
      {"threads", of_layers(thread_count)},
      {"split", of_layers(split_text)},
  };
  report.merge(network.describe_state_noise(training));
  if (training) report.emplace("saved", saved_text(first, steps, batch, checkpoint));
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
