// Layers side by side: every step of every layer once, in order, after what it reads; and whole stacks to the
// bit as on one thread. Also run under ThreadSanitizer.
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"
#include "cpu/wavefront.h"
#include "ops/network.h"
#include "threads.h"

using namespace fastrnn;
using namespace fastrnn::cpu;

namespace {

// Runs a wavefront in memory of the right size.
template <class Run>
void run_wavefront(Index layers, const LayerSplit& split, Index steps, bool in_turn, Run run) {
  Buffer buffer;
  Arena measure;
  const Wavefront measured(measure, layers, split, steps, in_turn);
  Arena arena(buffer.reserve(measure.used()));
  Wavefront wavefront(arena, layers, split, steps, in_turn);
  Team team(split.groups * split.within.threads);
  CHECK(team.size() == split.groups * split.within.threads);
  team.run([&](int tid) {
    wavefront.work(tid, [&](Index position, Range part, const Share& share) {
      run(*wavefront.progress(position), position, part, share);
    });
  });
}

std::vector<float> random(Index n, unsigned seed) {
  std::mt19937 bits(seed);
  std::uniform_real_distribution<float> uniform(-0.5F, 0.5F);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = uniform(bits);
  return values;
}

struct Results {
  std::vector<float> y, inferred, h, c, streamed_h, streamed_c, dx, dh0, dc0;
  std::vector<std::vector<float>> gradients;

  bool operator==(const Results& o) const {
    return y == o.y && inferred == o.inferred && h == o.h && c == o.c && streamed_h == o.streamed_h &&
           streamed_c == o.streamed_c && dx == o.dx && dh0 == o.dh0 && dc0 == o.dc0 &&
           gradients == o.gradients;
  }
};

// Training, backward with a checkpoint or without, and inference on states kept in other rows, in place.
Results run(const Network& network, Index steps, Index batch, Index checkpoint) {
  const LayerShape& s = network.first;
  std::vector<std::vector<float>> parameters;
  unsigned seed = 1;
  for (const Index size : network.parameter_sizes()) parameters.push_back(random(size, seed++));
  std::vector<const float*> pointers;
  for (const std::vector<float>& p : parameters) pointers.push_back(p.data());
  const std::vector<float> x = random(steps * batch * s.input, 100),
                           dy = random(steps * batch * network.output(), 101);
  std::vector<Index> lengths(static_cast<std::size_t>(batch), steps);
  for (Index b = 1; b < batch; ++b) lengths[static_cast<std::size_t>(b)] = steps * (b - 1) / batch;
  std::vector<std::uint8_t> reset(static_cast<std::size_t>(steps * batch), 0);
  for (std::size_t i = 0; i < reset.size(); i += 7) reset[i] = 1;

  Results out;
  out.y.assign(static_cast<std::size_t>(steps * batch * network.output()), 0);
  out.h.assign(static_cast<std::size_t>(network.parts() * batch * s.recurrent()), 0);
  out.c.assign(static_cast<std::size_t>(network.parts() * batch * s.hidden), 0);
  out.inferred = out.y;
  const Index rows = batch + 2;
  out.streamed_h = random(network.parts() * rows * s.recurrent(), 102);
  out.streamed_c = random(network.parts() * rows * s.hidden, 103);

  Weights<float> weights(network);
  weights.pack(pointers);
  Scratch scratch;
  ForwardArguments<float> args;
  args.steps = steps;
  args.batch = batch;
  args.x = contiguous(x.data(), batch, s.input);
  args.lengths = lengths.data();
  args.reset = reset.data();
  args.y = contiguous(out.y.data(), batch, network.output());
  args.h_n = out.h.data();
  args.c_n = out.c.data();
  Reserve<float> reserve(checkpoint);
  forward(weights, args, &reserve, scratch);

  BackwardArguments<float> back;
  static_cast<Arguments<float>&>(back) = args;
  back.parameters = pointers;
  back.y = contiguous<const float>(out.y.data(), batch, network.output());
  back.dy = contiguous(dy.data(), batch, network.output());
  out.dx = x;
  out.dh0 = out.h;
  out.dc0 = out.c;
  back.dx = contiguous(out.dx.data(), batch, s.input);
  back.dh0 = out.dh0.data();
  back.dc0 = out.dc0.data();
  out.gradients = parameters;
  for (std::vector<float>& g : out.gradients) back.gradients.push_back(g.data());
  backward(network, back, reserve, scratch);

  std::vector<Index> state_rows(static_cast<std::size_t>(batch));
  std::iota(state_rows.rbegin(), state_rows.rend(), Index{1});
  args.y = contiguous(out.inferred.data(), batch, network.output());
  args.h0 = args.h_n = out.streamed_h.data();
  args.c0 = args.c_n = out.streamed_c.data();
  args.state_rows = state_rows.data();
  args.state_batch = rows;
  forward(weights, args, static_cast<Reserve<float>*>(nullptr), scratch);
  return out;
}

}  // namespace

TEST(wavefront_runs_every_step_once_after_what_it_reads) {
  for (const bool in_turn : {false, true}) {
    for (const Index layers : {2, 3, 5}) {
      for (const int groups : {1, 2, 4}) {
        for (const int within : {1, 2}) {
          const Threads threads(groups * within);
          const Index steps = 23;
          // What a layer has written for each step, and what it still reads back; two of them in turn.
          std::vector<std::vector<Index>> written(static_cast<std::size_t>(layers),
                                                  std::vector<Index>(static_cast<std::size_t>(steps), -1));
          std::vector<std::vector<Index>> arrays(2, written[0]);
          const LayerSplit split{groups, 3, {within, true, ""}};
          run_wavefront(layers, split, steps, in_turn,
                        [&](Progress& progress, Index layer, Range part, const Share& share) {
                          CHECK(part.first < part.last && part.last - part.first <= 3);
                          CHECK(progress.steps() == part.first);
                          share.wait_all();
                          if (share.tid > 0) return;
                          const auto at = static_cast<std::size_t>(layer);
                          for (auto t = static_cast<std::size_t>(part.first);
                               t < static_cast<std::size_t>(part.last); ++t) {
                            if (layer > 0) CHECK(written[at - 1][t] == layer - 1);
                            CHECK(written[at][t] == -1);
                            written[at][t] = layer;
                            if (!in_turn) continue;
                            if (layer > 0) CHECK(arrays[(at + 1) % 2][t] == layer - 1);
                            if (t > 0) CHECK(arrays[at % 2][t - 1] == layer);
                            arrays[at % 2][t] = layer;
                          }
                          progress.reach(part.last);
                        });
          for (const std::vector<Index>& layer : written)
            CHECK(layer == std::vector<Index>(static_cast<std::size_t>(steps),
                                              static_cast<Index>(&layer - written.data())));
        }
      }
    }
  }
}

TEST(wavefront_goes_on_while_a_layer_is_busy_with_something_else) {
  const Threads threads(2);
  // The first layer stays in its task until the second one has done what it may read of it.
  Progress* second = nullptr;
  Buffer buffer;
  Arena measure;
  const LayerSplit split{2, 4, {}};
  const Wavefront measured(measure, 2, split, 10, false);
  Arena arena(buffer.reserve(measure.used()));
  Wavefront wavefront(arena, 2, split, 10, false);
  second = wavefront.progress(1);
  Team team(2);
  team.run([&](int tid) {
    wavefront.work(tid, [&](Index position, Range part, const Share&) {
      if (position == 0 && part.first == 4) {
        wavefront.progress(0)->reach(6);
        while (second->steps() < 6) detail::pause();
      }
      wavefront.progress(position)->reach(part.last);
    });
  });
  CHECK(wavefront.progress(0)->steps() == 10 && second->steps() == 10);
}

TEST(wavefront_ends_when_a_task_throws) {
  const Threads threads(3);
  for (const Index thrower : {0, 1, 2}) {
    CHECK_THROWS(run_wavefront(3, {3, 2, {}}, 20, false,
                               [&](Progress& progress, Index layer, Range part, const Share&) {
                                 if (layer == thrower && part.first >= 4) throw std::runtime_error("a task");
                                 progress.reach(part.last);
                               }),
                 std::runtime_error, "a task");
  }
}

TEST(stacks_side_by_side_have_the_bits_of_one_thread) {
  for (const Cell cell : {Cell::lstm, Cell::gru, Cell::rnn}) {
    for (const Index layers : {2, 3}) {
      for (const Index batch : {1, 5}) {
        Network network;
        network.first.cell = cell;
        network.first.hidden = 48;
        network.first.reset_after = batch == 1;
        if (cell == Cell::lstm && batch > 1) network.first.projection = 20;
        network.first.input = network.first.recurrent();  // as much work for each layer
        network.layers = layers;
        network.dropout = layers > 2 ? 0.4 : 0;
        if (layers > 2) {
          network.recurrent_dropout = 0.3;
          network.zoneout_h = 0.2;
          network.zoneout_c = cell == Cell::lstm ? 0.3 : 0;
        }
        const Index steps = 120;
        for (const Index checkpoint : {0, 1}) {
          Results alone;
          for (const int n : {1, 2, 3, 4}) {
            const Threads threads(n);
            Results got = run(network, steps, batch, checkpoint);
            if (n == 1) {
              alone = std::move(got);
              continue;
            }
            const std::string split =
                explain<float>(network, steps, batch, true, false, checkpoint).at("split");
            const bool segments = checkpoint > 0 && cell != Cell::rnn;
            if (n <= layers || segments)
              CHECK((split.find("layers side by side") == std::string::npos) == segments);
            CHECK(got == alone);
          }
        }
      }
    }
  }
}
