// How calls are computed on devices that need not be there: an A100, an H200, a GeForce.
#include <vector>

#include "check.h"
#include "cuda/persistent.h"
#include "cuda/plan.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

Limits device(int major, int minor, int processors, int shared_kilobytes = 227) {
  Limits limits;
  limits.major = major;
  limits.minor = minor;
  limits.processors = processors;
  limits.shared_per_block = shared_kilobytes * 1024;
  return limits;
}
const Limits a100 = device(8, 0, 108, 163), rtx4090 = device(8, 9, 128, 99), h200 = device(9, 0, 132),
             b200 = device(10, 0, 148), rtx5090 = device(12, 0, 170, 99);

Request request(Cell cell, DType dtype, Index steps, Index batch, Index hidden) {
  Request r;
  r.network.first.cell = cell;
  r.network.first.input = r.network.first.hidden = hidden;
  r.dtype = dtype;
  r.steps = steps;
  r.batch = batch;
  return r;
}

bool says(const Request& r, const Limits& limits, const char* key, const char* text) {
  return describe(r, limits).at(key).find(text) != std::string::npos;
}

}  // namespace

TEST(plan_splits_large_float32_products_on_server_chips) {
  const Request r = request(Cell::lstm, DType::float32, 512, 64, 512);
  for (const Limits& limits : {a100, h200, b200}) {
    const Plan plan = make_plan(r, limits);
    CHECK(plan.products == Products::bf16x3);
    CHECK(plan.splits(512 * 64, 4 * 512, 512));
    CHECK(!plan.splits(64, 4 * 512, 512));  // 6.7e7 multiplications
    CHECK(plan.splits(1000, 1000, 1000));
    CHECK(!plan.splits(1000, 1000, 999));
  }
  for (const Limits& limits : {rtx4090, rtx5090}) {
    const Plan plan = make_plan(r, limits);
    CHECK(plan.products == Products::plain);
    CHECK(!plan.splits(512 * 64, 4 * 512, 512));
    CHECK(says(r, limits, "arithmetic_reason", "not fast enough"));
  }
}

TEST(plan_computes_float32_as_asked_for) {
  Request r = request(Cell::gru, DType::float32, 4, 2, 8);
  r.products = Products::plain;
  CHECK(make_plan(r, h200).products == Products::plain);
  r.products = Products::tf32;
  CHECK(make_plan(r, h200).products == Products::tf32);
  CHECK(says(r, h200, "arithmetic", "tf32"));
  r.products = Products::bf16x3;
  CHECK(make_plan(r, rtx4090).splits(1, 1, 1));
}

TEST(plan_has_one_way_for_other_types) {
  for (const DType dtype : {DType::float64, DType::float16, DType::bfloat16}) {
    Request r = request(Cell::rnn, dtype, 512, 64, 512);
    for (const Products products : {Products::automatic, Products::bf16x3, Products::tf32}) {
      r.products = products;
      CHECK(make_plan(r, h200).products == Products::plain);
      CHECK(!make_plan(r, h200).splits(1 << 20, 1 << 12, 1 << 12));
    }
  }
}

// An exhaustive search is not repeated here: what is chosen fits, and is what such a layer needs.
TEST(plan_keeps_weights_on_the_chip) {
  struct {
    Cell cell;
    DType dtype;
    Index batch, hidden;
    const Limits& limits;
    Strategy strategy;
  } const cases[] = {
      {Cell::lstm, DType::bfloat16, 1, 16, h200, Strategy::cta},
      {Cell::lstm, DType::bfloat16, 64, 512, h200, Strategy::cluster},
      {Cell::gru, DType::float16, 16, 512, h200, Strategy::cluster},
      {Cell::lstm, DType::bfloat16, 16, 768, h200, Strategy::cluster},
      {Cell::rnn, DType::bfloat16, 16, 1024, h200, Strategy::cluster},
      {Cell::gru, DType::float32, 64, 512, h200, Strategy::cluster},
      {Cell::gru, DType::bfloat16, 64, 96, a100, Strategy::cta},
      {Cell::lstm, DType::bfloat16, 64, 512, a100, Strategy::step},    // has no clusters
      {Cell::lstm, DType::bfloat16, 16, 1024, h200, Strategy::step},   // does not fit
      {Cell::gru, DType::float32, 16, 768, h200, Strategy::step},      // nor this
      {Cell::lstm, DType::bfloat16, 256, 768, h200, Strategy::step},   // is faster by products
      {Cell::lstm, DType::float32, 16, 128, rtx4090, Strategy::step},  // float32 in three products is not
      {Cell::lstm, DType::float32, 16, 96, h200, Strategy::cluster},
      {Cell::lstm, DType::float32, 16, 95, h200, Strategy::step},  // would stray from float32
  };
  for (const auto& c : cases) {
    const Request r = request(c.cell, c.dtype, 512, c.batch, c.hidden);
    const Plan plan = make_plan(r, c.limits);
    CHECK(plan.forward.strategy == c.strategy);
    CHECK((plan.forward.launch.ranks > 1) == (c.strategy == Strategy::cluster));
    if (plan.forward.strategy == Strategy::step) continue;
    const PersistentShape s = persistent_shape(r, plan.forward.launch);
    CHECK(s.padded() >= c.hidden && s.groups() * s.columns >= c.batch);
    CHECK(s.blocks() % plan.forward.launch.ranks == 0);
    if (c.dtype != DType::bfloat16) continue;
    with_persistent<ForwardPass, bfloat16_t>(c.cell, plan.forward.launch.tile, [&](auto kernel) {
      using Layout = typename decltype(kernel)::Kernel::Layout;
      CHECK(Layout(s).shared.bytes() <= c.limits.shared_per_block);
    });
  }
}

// Backward has a plan of its own: it holds as much, and exchanges more.
TEST(plan_of_backward) {
  Request r = request(Cell::lstm, DType::bfloat16, 512, 16, 512);
  CHECK(make_plan(r, h200).backward.strategy == Strategy::step);  // there is none
  r.training = true;
  CHECK(make_plan(r, h200).backward.strategy == Strategy::cluster);
  CHECK(says(r, h200, "backward_strategy", "cluster"));
  CHECK(says(r, h200, "backward_strategy_reason", "rows of the batch"));
  CHECK(make_plan(r, a100).backward.strategy == Strategy::step);
  CHECK(says(r, a100, "backward_strategy_reason", "do not fit"));
  for (const Cell cell : {Cell::lstm, Cell::gru}) {  // as many units as 16 CTAs hold in 16 bits, either way
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      r = request(cell, dtype, 512, 64, 768);
      r.training = true;
      const Plan plan = make_plan(r, h200);
      CHECK(plan.forward.strategy == Strategy::cluster && plan.backward.strategy == Strategy::cluster);
      CHECK(plan.forward.launch.ranks == 16 && plan.backward.launch.ranks == 16);
      CHECK(plan.backward.launch.tile == TileKind::tall);
      r.network.first.hidden = 769;
      CHECK(make_plan(r, h200).forward.strategy == Strategy::step);
      CHECK(make_plan(r, h200).backward.strategy == Strategy::step);
    }
  }
}

TEST(plan_asks_for_no_more_clusters_than_there_are) {
  const Request r = request(Cell::lstm, DType::bfloat16, 512, 16, 512);
  Limits limits = h200;
  CHECK(make_plan(r, limits).forward.launch.ranks == 16);
  limits.clusters[3] = 0;
  CHECK(make_plan(r, limits).forward.launch.ranks == 8);
  CHECK(says(r, limits, "strategy", "cluster"));
  CHECK(says(r, limits, "strategy_reason", "a cluster of 8 CTAs"));
  CHECK(says(r, limits, "strategy_reason", "no GPU has confirmed"));
  CHECK(says(r, limits, "kernel", "lstm_fwd_infer_cluster"));
  CHECK(says(r, limits, "products", "part of the kernel"));
  for (int& count : limits.clusters) count = 0;
  CHECK(make_plan(r, limits).forward.strategy == Strategy::step);
  CHECK(says(r, limits, "strategy_reason", "do not fit"));
}

TEST(plan_does_what_is_wished_if_it_can) {
  Request r = request(Cell::gru, DType::bfloat16, 3, 5, 40);
  CHECK(make_plan(r, h200).forward.strategy == Strategy::step);
  CHECK(says(r, h200, "strategy_reason", "to take longer"));
  const PersistentLaunch launch{4, 16, TileKind::wide};
  r.wish = Wish::for_launch(launch);
  const Plan plan = make_plan(r, h200);
  CHECK(plan.forward.strategy == Strategy::cluster && plan.forward.launch == launch);
  CHECK(says(r, h200, "strategy_reason", "as asked for"));
  CHECK(make_plan(r, a100).forward.strategy == Strategy::step);
  CHECK(says(r, a100, "strategy_reason", "does not fit this device"));
  r.steps = 512;
  r.wish.strategy = Strategy::step;
  CHECK(make_plan(r, h200).forward.strategy == Strategy::step);
  r.wish = {};
  r.wish.ranks = 4;  // what is not wished for is chosen
  CHECK(make_plan(r, h200).forward.launch.ranks == 4);
  CHECK(says(r, h200, "strategy_reason", "as asked for"));
  CHECK(says(r, a100, "strategy_reason", "does not fit this device"));
}

TEST(plan_says_which_pass_goes_which_way) {
  Request r = request(Cell::lstm, DType::bfloat16, 512, 16, 512);
  r.network.directions = 2;
  r.training = true;
  r.backward_wish.strategy = Strategy::step;
  CHECK(says(r, h200, "products", "forward part of the kernel, backward 1 product per step"));
  CHECK(says(r, h200, "directions", "two, forward in one launch, backward side by side on two streams"));
}

TEST(plan_takes_no_sizes_that_overflow) {
  for (const Index hidden : {Index{1} << 21, Index{1} << 31}) {
    Request r = request(Cell::lstm, DType::bfloat16, 512, 1, 64);
    r.network.first.hidden = hidden;
    CHECK(says(r, h200, "strategy_reason", "more than such a kernel counts"));
  }
  Request r = request(Cell::lstm, DType::bfloat16, 1, (Index{1} << 30) + 1, 64);
  CHECK(says(r, h200, "strategy_reason", "more than such a kernel counts"));
}

TEST(plan_follows_what_was_measured) {
  // Made up: the launch is not the model's, nor is who is faster.
  const PersistentLaunch launch{8, 16, TileKind::wide};
  const char* source = "measured on a GPU, commit abc";
  Tuned rows[] = {{90, 132, source, Cell::lstm, DType::bfloat16, false, 512, 48, launch, 3e-6, 2e-6},
                  {90, 132, source, Cell::lstm, DType::bfloat16, false, 512, 64, launch, 2e-6, 3e-6}};
  const TunedTable table{rows, 2};
  const auto reason = [&](const Request& r, const Limits& limits) {
    return describe(r, limits, table).at("strategy_reason");
  };
  Request r = request(Cell::lstm, DType::bfloat16, 512, 64, 512);
  CHECK(make_plan(r, h200, {}).forward.launch != launch);
  for (const Index batch : {64, 49}) {
    r.batch = batch;
    CHECK(make_plan(r, h200, table).forward.strategy == Strategy::cluster);
    CHECK(make_plan(r, h200, table).forward.launch == launch);
    CHECK(reason(r, h200).find("of 8 CTAs; measured on a GPU, commit abc") != std::string::npos);
  }
  for (const Index batch : {48, 33}) {  // the nearest above counts, by which steps are faster
    r.batch = batch;
    CHECK(make_plan(r, h200, table).forward.strategy == Strategy::step);
    CHECK(reason(r, h200).find("every step: measured on a GPU, commit abc") != std::string::npos);
  }
  // At few steps, reading the weights (34 us by estimate) takes longer than the step that it saves.
  r.batch = 64;
  r.steps = 33;
  CHECK(make_plan(r, h200, table).forward.strategy == Strategy::step);
  r.steps = 36;
  CHECK(make_plan(r, h200, table).forward.strategy == Strategy::cluster);
  r.steps = 512;

  // Each pass has rows of its own; forward's are for training and inference.
  r.training = true;
  CHECK(make_plan(r, h200, table).forward.launch == launch);
  Tuned row = rows[1];
  row.backward = true;
  r.network.first.hidden = row.hidden = 256;
  const Plan before = make_plan(r, h200, {});
  for (const PossibleLaunch& one : possible_launches(r, h200, true)) {
    if (one.launch != before.backward.launch) row.launch = one.launch;
  }
  const Plan after = make_plan(r, h200, {&row, 1});
  CHECK(after.backward.launch != before.backward.launch);
  CHECK(after.backward.launch == row.launch);
  CHECK(after.forward.launch == before.forward.launch);
  CHECK(describe(r, h200, {&row, 1}).at("backward_strategy_reason").find(row.source) != std::string::npos);
  r.backward_wish.strategy = Strategy::step;
  CHECK(make_plan(r, h200, {&row, 1}).backward.strategy == Strategy::step);
  CHECK(make_plan(r, h200, {&row, 1}).forward.strategy == Strategy::cluster);
  r = request(Cell::lstm, DType::bfloat16, 512, 64, 512);

  const auto modelled = [&](const Request& other, const Limits& limits) {
    return describe(other, limits, table) == describe(other, limits, {});
  };
  CHECK(!modelled(r, h200));
  const auto with = [&](auto change) {
    Request other = r;
    change(other);
    return other;
  };
  CHECK(modelled(with([](Request& o) { o.batch = 65; }), h200));
  CHECK(modelled(with([](Request& o) { o.batch = 24; }), h200));
  CHECK(modelled(with([](Request& o) { o.network.first.hidden = 496; }), h200));
  CHECK(modelled(with([](Request& o) { o.network.first.cell = Cell::gru; }), h200));
  CHECK(modelled(with([](Request& o) { o.dtype = DType::float16; }), h200));
  CHECK(modelled(with([](Request& o) { o.network.directions = 2; }), h200));
  CHECK(modelled(with([](Request& o) { o.wish.strategy = Strategy::cluster; }), h200));
  Limits slice = h200;
  slice.processors = 66;
  CHECK(modelled(r, slice));
  CHECK(modelled(r, b200));
  Limits shared = h200;  // others hold what clusters of 8 need
  shared.clusters[2] = shared.clusters[3] = 0;
  CHECK(modelled(r, shared));
}

TEST(plan_lists_launches_that_are_possible) {
  Request r = request(Cell::lstm, DType::bfloat16, 512, 64, 512);
  const Plan plan = make_plan(r, h200);
  const std::vector<PossibleLaunch> found = possible_launches(r, h200, false);
  int chosen = 0;
  for (const PossibleLaunch& one : found) {
    CHECK(one.seconds > 0 && one.seconds < 1e-3);
    r.wish = Wish::for_launch(one.launch);
    CHECK(make_plan(r, h200).forward.launch == one.launch);
    chosen += one.launch == plan.forward.launch;
  }
  CHECK(chosen == 1);
  CHECK(possible_launches(request(Cell::lstm, DType::bfloat16, 512, 64, 512), a100, false).empty());
  CHECK(possible_launches(request(Cell::lstm, DType::float64, 512, 64, 16), h200, false).empty());
}

// What is shared out among ranks and warps is there once, and fits.
TEST(plan_divides_products_whole) {
  for (const int hidden : {1, 15, 16, 17, 33, 100, 512, 768}) {
    for (const int ranks : {1, 2, 4, 8, 16}) {
      PersistentShape s;
      s.hidden = hidden;
      s.ranks = ranks;
      CHECK(s.padded() >= hidden && s.units() % kPiece == 0 && s.padded() % (2 * kPiece) == 0);
      for (const int tall : {3, 4, 6}) {
        const ProductShape p(4 * s.units(), s.padded(), s.columns, tall);
        CHECK(p.down * p.across() == kPersistentWarps);
        CHECK(p.share % 2 == 0 && p.share * kPiece * p.across() >= p.depth);
        CHECK(!p.fits(tall) || p.down * tall * kPiece >= p.rows);
        CHECK(p.vector_pitch() / 8 % 2 == 1);
      }
    }
  }
}

TEST(plan_says_why_a_step_at_a_time) {
  Request r = request(Cell::lstm, DType::bfloat16, 512, 64, 512);
  r.network.zoneout_h = 0.1;
  CHECK(make_plan(r, h200).forward.strategy == Strategy::step);
  CHECK(says(r, h200, "strategy_reason", "zoneout"));
  CHECK(says(r, h200, "kernel", "lstm_fwd_infer_step"));
  CHECK(says(r, h200, "products", "1 product per step"));
  r.training = true;
  CHECK(says(r, h200, "kernel", "lstm_fwd_train_step"));
  r.network.zoneout_h = 0;
  r.network.first.projection = 100;
  CHECK(says(r, h200, "strategy_reason", "projection"));
  CHECK(says(r, h200, "products", "1 more for the projection"));
  r.network.first.projection = 0;
  r.network.first.peephole = Peephole::full;
  CHECK(says(r, h200, "strategy_reason", "full peephole"));
  CHECK(says(r, h200, "products", "3 products"));
  r = request(Cell::gru, DType::bfloat16, 512, 64, 512);
  r.network.first.reset_after = false;
  CHECK(says(r, h200, "strategy_reason", "reset_after=False"));
  CHECK(says(r, h200, "products", "2 products"));
  CHECK(says(request(Cell::rnn, DType::float64, 1, 1, 1), h200, "strategy_reason", "float64"));
  r = request(Cell::gru, DType::float32, 512, 64, 512);
  r.products = Products::plain;
  CHECK(says(r, h200, "strategy_reason", "which is not what these products are"));
  r = request(Cell::gru, DType::float32, 512, 64, 64);
  CHECK(says(r, h200, "strategy_reason", "few units do not average out"));
  r.products = Products::bf16x3;
  CHECK(says(r, h200, "kernel", "gru_fwd_infer_c"));
  CHECK(says(request(Cell::gru, DType::bfloat16, 512, 0, 512), h200, "strategy_reason", "nothing"));
  r = request(Cell::lstm, DType::float32, 512, 64, 512);
  r.network.recurrent_dropout = 0.5;
  CHECK(make_plan(r, h200).forward.strategy == Strategy::cluster);
  CHECK(says(r, h200, "recurrent_dropout", "0.5: not in inference"));
  CHECK(describe(r, h200).count("zoneout") == 0);
  r.training = true;
  CHECK(says(r, h200, "strategy_reason", "recurrent dropout"));
  CHECK(says(r, h200, "recurrent_dropout", "one mask on h"));
  r.network.zoneout_h = 0.25;
  CHECK(says(r, h200, "zoneout", "h 0.25, c 0: a mask for each step"));
  r.training = false;
  CHECK(says(r, h200, "strategy_reason", "zoneout"));
  CHECK(says(r, h200, "zoneout", "the expectation"));
}

TEST(plan_gathers_tokens_as_few_or_many) {
  Request r = request(Cell::lstm, DType::float32, 10, 8, 640);
  CHECK(!make_plan(r, h200).transpose_tokens);
  CHECK(says(r, h200, "input", "one product"));
  r.tokens = true;
  CHECK(make_plan(r, h200).transpose_tokens);  // 80 tokens, 640 columns
  CHECK(says(r, h200, "input", "transposed"));
  r.steps = 9;
  CHECK(!make_plan(r, h200).transpose_tokens);
  CHECK(says(r, h200, "input", "columns of W_ih gathered"));
}

TEST(plan_steps_streams_in_one_kernel_if_it_can) {
  Request r = request(Cell::lstm, DType::float32, 1, 32, 512);
  CHECK(!make_plan(r, h200).stream_kernel);
  r.stream = true;
  CHECK(make_plan(r, h200).stream_kernel);
  CHECK(says(r, h200, "kernel", "lstm_fwd_infer_stream"));
  r.batch = 33;
  CHECK(!make_plan(r, h200).stream_kernel);
  CHECK(says(r, h200, "strategy_reason", "so many rows"));
  r.batch = 1;
  r.network.first.peephole = Peephole::diagonal;
  CHECK(make_plan(r, h200).stream_kernel);
  r.network.first.peephole = Peephole::full;
  CHECK(!make_plan(r, h200).stream_kernel);
  r.network.first.peephole = Peephole::none;
  r.network.first.projection = 5;
  CHECK(!make_plan(r, h200).stream_kernel);
  r = request(Cell::gru, DType::float16, 1, 1, 64);
  r.stream = true;
  CHECK(make_plan(r, a100).stream_kernel);
  r.network.first.reset_after = false;
  CHECK(!make_plan(r, a100).stream_kernel);
}

TEST(plan_sizes_launches_by_the_device) {
  const Request r = request(Cell::lstm, DType::float32, 512, 64, 512);
  CHECK(make_plan(r, h200).most_blocks == 132 * 8 * 8);
  CHECK(make_plan(r, a100).most_blocks == 108 * 8 * 8);
  CHECK(make_plan(r, h200).sum_rows == 128);  // 32768 rows, 256 chunks
  CHECK(make_plan(request(Cell::lstm, DType::float32, 3, 2, 8), h200).sum_rows == 32);
  CHECK(make_plan(request(Cell::lstm, DType::float32, 3, 0, 8), h200).sum_rows == 32);
}
