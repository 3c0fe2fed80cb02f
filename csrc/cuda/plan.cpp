#include "cuda/plan.h"

#include <algorithm>
#include <limits>

#include "cuda/persistent.h"
#include "cuda/tuned.h"

namespace fastrnn::cuda {
namespace {

// A pointwise launch has at most so many waves of CTAs; for more elements each thread takes several. Enough
// that the imbalance of the last wave is small.
constexpr int kWaves = 8;
constexpr int kThreads = 256;

// A column sum has at most this many chunks: its second stage is one chain over them.
constexpr Index kMostChunks = 256;
constexpr Index kFewestSumRows = 32;

// Splitting reads and writes both operands and starts two kernels: below this many multiplications (an SGEMM
// of some tens of microseconds) that costs what the faster product saves.
constexpr double kWorthSplitting = 1e9;

// Units from which W_hh may stay on chip as bf16x3 without being asked to. What hi + lo leaves out of a
// weight is left out at every step, and few units average little of it out: y of an Elman layer whose weights
// are twice the default size, T = 16, was off by 51 (H = 8), 36 (16), 30 (32), 20 (64) and 16 (128) times
// what it is in float32 (medians of 100 layers), where 20 times are promised.
constexpr Index kFewestSplitUnits = 96;

// Rows up to which a step is bound by reading the weights, which the kernel for streams does once for every 8
// rows (an estimate).
constexpr Index kMostStreamRows = 32;

// bfloat16 multiply-adds of the tensor cores for one float32 multiply-add, by the architecture's data sheets:
// 16 on the chips for servers, 4 on the others, where three products instead of one gain nothing.
bool has_wide_tensor_cores(const Limits& limits) {
  const int capability = limits.capability();
  return capability == 80 || capability == 90 || (capability >= 100 && capability < 120);
}

// With more than these, the sizes in a persistent kernel, which are int, could overflow.
constexpr Index kMostRows = Index{1} << 30, kMostUnits = Index{1} << 20;

// Why the weights can't stay on chip, whatever the device.
const char* why_step(const Request& request, Products products) {
  const LayerShape& s = request.network.first;
  if (request.dtype == DType::float64)
    return "float64 has no tensor-core product that is worth keeping weights for";
  if (request.network.has_state_noise(request.training))
    return "recurrent dropout and zoneout are in the kernels of one step";
  if (s.projection) return "a projection needs two exchanges of h in every step";
  if (s.peephole == Peephole::full) return "the full peephole needs an exchange of c in every step";
  if (s.cell == Cell::gru && !s.reset_after) return "reset_after=False needs two exchanges in every step";
  if (request.dtype == DType::float32 && products != Products::bf16x3)
    return "float32 on chip is bf16x3, which is not what these products are";
  if (request.dtype == DType::float32 && request.products == Products::automatic &&
      s.hidden < kFewestSplitUnits)
    return "float32 on chip is bf16x3, whose error few units do not average out; it can be asked for";
  if (request.steps == 0 || request.batch == 0) return "there is nothing to compute";
  if (request.steps > std::numeric_limits<int>::max() || request.batch > kMostRows || s.hidden > kMostUnits)
    return "T, B or H is more than such a kernel counts";
  return "";
}

// Clock of an H200, in Hz: the model counts in cycles.
constexpr double kClock = 1.755e9;

// Cycles of a step by products and pointwise kernels: two launches of some 2 us, and products at half of what
// an H200 can at best. Estimates, as those of persistent.cpp.
double step_cycles(const Request& request) {
  const LayerShape& s = request.network.first;
  const double flop = 2.0 * static_cast<double>(request.batch) * static_cast<double>(s.gate_rows()) *
                      static_cast<double>(s.hidden);
  const double peak = request.dtype == DType::float32 ? 50e12 : 790e12;  // a second
  return static_cast<double>(request.network.directions) * kClock * (4.3e-6 + 2 * flop / peak);
}
// Reading the weights and laying them out, before the first step; an estimate.
constexpr double kLoadCycles = 60e3;

// The measurement that speaks for this pass of the call on such a device, or null. It is of the same H, and
// of at most twice as many rows, which the same CTAs compute in the same time or little more.
const Tuned* measured(const Request& request, bool backward, const Limits& limits, const TunedTable& table) {
  const Network& n = request.network;
  if (n.directions > 1) return nullptr;
  const Tuned* best = nullptr;
  for (const Tuned* row = table.rows; row != table.rows + table.count; ++row) {
    if (row->capability == limits.capability() && row->processors == limits.processors &&
        row->cell == n.first.cell && row->dtype == request.dtype && row->backward == backward &&
        row->hidden == n.first.hidden && row->batch >= request.batch && row->batch < 2 * request.batch &&
        (!best || row->batch < best->batch))
      best = row;
  }
  return best;
}

// Fills in a pass for which why_step() knows no reason against a persistent kernel.
void choose_strategy(PassPlan& plan, bool backward, const Request& request, const Limits& limits,
                     const TunedTable& table) {
  const Wish& wish = backward ? request.backward_wish : request.wish;
  if (wish.strategy == Strategy::step) {
    plan.reason = "as asked for";
    return;
  }
  PersistentChoice choice;
  const double steps = static_cast<double>(request.steps);
  double by_steps = step_cycles(request);
  const char* reason = wish.any() ? "as asked for" : "by estimates, which no GPU has confirmed yet";
  const char* why_steps =
      "loading the weights onto the chip and keeping them there is estimated to take longer";
  if (!wish.any() && steps * by_steps < kLoadCycles) {
    plan.reason = why_steps;
    return;
  }
  if (const Tuned* row = wish.any() ? nullptr : measured(request, backward, limits, table)) {
    choice = choose_persistent(request, Wish::for_launch(row->launch), backward, limits);
    if (choice.launch.ranks) {  // not where other clusters leave too few processors
      choice.cycles = kClock * row->launch_seconds;
      by_steps = kClock * row->step_seconds;
      reason = why_steps = row->source;
    }
  }
  if (!choice.launch.ranks) choice = choose_persistent(request, wish, backward, limits);
  if (!choice.launch.ranks) {
    plan.reason = wish.any() ? "what was asked for does not fit this device"
                             : "the weights do not fit on as many processors as can share them";
    return;
  }
  if (!wish.any() && steps * by_steps < kLoadCycles + steps * choice.cycles) {
    plan.reason = why_steps;
    return;
  }
  plan = {choice.launch.strategy(), reason, choice.launch};
}

void choose_strategies(Plan& plan, const Request& request, const Limits& limits, const TunedTable& table) {
  plan.forward.reason = plan.backward.reason = why_step(request, plan.products);
  if (*plan.forward.reason != '\0') return;
  choose_strategy(plan.forward, false, request, limits, table);
  if (request.training) choose_strategy(plan.backward, true, request, limits, table);
}

// What describe() says of a pass.
std::string describe_pass(const PassPlan& plan) {
  if (plan.strategy == Strategy::step)
    return std::string("products and a pointwise kernel for every step: ") + plan.reason;
  const PersistentLaunch& launch = plan.launch;
  return "one kernel a layer for all steps, with W_hh on the chip: every " + std::to_string(launch.columns) +
         " rows of the batch in " +
         (launch.ranks == 1 ? "one CTA" : "a cluster of " + std::to_string(launch.ranks) + " CTAs") + "; " +
         plan.reason;
}

// Why a step of a stream can't be one kernel, or empty.
const char* why_no_stream_kernel(const Request& request) {
  const LayerShape& s = request.network.first;
  if (s.projection) return "a projection needs all of h";
  if (s.peephole == Peephole::full) return "the full peephole needs all of c";
  if (s.cell == Cell::gru && !s.reset_after) return "reset_after=False needs all of r * h";
  if (request.batch > kMostStreamRows) return "with so many rows the products are worth kernels of their own";
  return "";
}

void choose_products(Plan& plan, const Request& request, const Limits& limits) {
  if (request.dtype != DType::float32) {
    plan.products = Products::plain;
    plan.products_reason =
        is_16_bit(request.dtype) ? "tensor cores, summed in float32" : "float64 throughout";
    return;
  }
  plan.products = request.products;
  switch (request.products) {
    case Products::automatic:
      if (has_wide_tensor_cores(limits)) {
        plan.products = Products::bf16x3;
        plan.split_from = kWorthSplitting;
        plan.products_reason =
            "products over all steps from 10^9 multiplications on as bf16x3, smaller ones and those of a "
            "step in float32, but bf16x3 where one kernel has all steps";
      } else {
        plan.products = Products::plain;
        plan.products_reason =
            "float32: bfloat16 is not fast enough on this device to do three products instead of one";
      }
      break;
    case Products::plain: plan.products_reason = "float32, as asked for"; break;
    case Products::bf16x3:
      plan.products_reason =
          "bf16x3 for all products over all steps, and where one kernel has all steps, as asked for";
      break;
    case Products::tf32: plan.products_reason = "tf32, as asked for"; break;
  }
}

}  // namespace

TunedTable tuned() { return {kTuned.data(), kTuned.size()}; }

std::vector<PossibleLaunch> possible_launches(const Request& request, const Limits& limits, bool backward) {
  std::vector<PossibleLaunch> found;
  Plan plan;
  choose_products(plan, request, limits);
  if (*why_step(request, plan.products) != '\0') return found;
  for_each_launch([&](const PersistentLaunch& launch) {
    const PersistentChoice choice = choose_persistent(request, Wish::for_launch(launch), backward, limits);
    if (choice.launch.ranks) found.push_back({choice.launch, choice.cycles / kClock});
  });
  return found;
}

Plan make_plan(const Request& request, const Limits& limits, const TunedTable& table) {
  const LayerShape& s = request.network.first;
  const Index rows = request.steps * request.batch;
  Plan plan;

  choose_products(plan, request, limits);
  if (!request.stream) {
    choose_strategies(plan, request, limits, table);
  } else {
    plan.forward.reason = why_no_stream_kernel(request);
    plan.stream_kernel = *plan.forward.reason == '\0';
  }

  // Reading a column of W_ih for one token touches a sector of 32 bytes for every value; transposing touches
  // every value twice. So it pays from about one token for every eight columns on.
  plan.transpose_tokens = request.tokens && rows >= s.input / 8;

  plan.most_blocks = limits.processors * (limits.threads_per_processor / kThreads) * kWaves;
  plan.sum_rows = std::max(kFewestSumRows, ceil_div(rows, kMostChunks));
  return plan;
}

std::map<std::string, std::string> describe(const Request& request, const Limits& limits,
                                            const TunedTable& table) {
  const Plan plan = make_plan(request, limits, table);
  const LayerShape& s = request.network.first;
  std::string products = "1 product per step";
  if (s.cell == Cell::gru && !s.reset_after)
    products = "2 products per step: the candidate needs all of r * h (reset_after=False)";
  if (s.peephole == Peephole::full)
    products =
        "3 products per step: i and f need all of c, the output gate all of the new c (peephole=\"full\")";
  if (s.projection) products += "; 1 more for the projection";
  // What to say where passes differ in whether they are persistent.
  const auto by_way = [&](const std::string& persistent, const std::string& by_step) {
    const bool forward = plan.forward.strategy != Strategy::step;
    if (!request.training || forward == (plan.backward.strategy != Strategy::step))
      return forward ? persistent : by_step;
    return "forward " + (forward ? persistent : by_step) + ", backward " + (forward ? by_step : persistent);
  };
  std::string kernel = s.cell == Cell::lstm ? "lstm" : s.cell == Cell::gru ? "gru" : "elman";
  std::string reason;
  if (plan.stream_kernel) {
    kernel += "_fwd_infer_stream";
    products = "part of the kernel";
    reason = "one kernel a layer: products, gates and state in place";
  } else {
    kernel += request.training ? "_fwd_train_" : "_fwd_infer_";
    kernel += name_of(plan.forward.strategy, kStrategies);
    products = by_way("part of the kernel", products);
    reason = describe_pass(plan.forward);
  }
  std::map<std::string, std::string> words{
      {"kernel", kernel},
      {"strategy", name_of(plan.forward.strategy, kStrategies)},
      {"strategy_reason", reason},
      {"dtype", name_of(request.dtype, kDTypes)},
      {"products", products},
      {"input", !request.tokens         ? "one product for all steps"
                : plan.transpose_tokens ? "rows of W_ih transposed gathered, no product"
                                        : "columns of W_ih gathered, no product"},
      {"directions", request.network.directions == 1
                         ? "one"
                         : "two, " + by_way("in one launch", "side by side on two streams")},
      {"arithmetic", name_of(plan.products, kProducts)},
      {"arithmetic_reason", plan.products_reason},
      {"device", "sm_" + std::to_string(limits.capability()) + ", " + std::to_string(limits.processors) +
                     " processors"},
  };
  words.merge(request.network.describe_state_noise(request.training));
  if (request.training) {
    words["backward_strategy"] = name_of(plan.backward.strategy, kStrategies);
    words["backward_strategy_reason"] = describe_pass(plan.backward);
  }
  return words;
}

}  // namespace fastrnn::cuda
