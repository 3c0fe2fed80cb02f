// How a call is computed: shape, element type and the device's limits in, strategy and launch sizes out. Pure
// host code: a plan can be asked for a device that is not there.
#pragma once

#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/half.h"
#include "core/network.h"
#include "cuda/limits.h"

namespace fastrnn::cuda {

// How the steps of a sequence are run.
enum class Strategy {
  step,     // products and a pointwise kernel for every step
  cta,      // all steps in one CTA a group of rows, weights on chip
  cluster,  // the same in a cluster, h exchanged by distributed shared memory
};

// How products of float32 are computed; the other types have one way.
enum class Products {
  automatic,  // plain or bf16x3, whichever should be faster
  plain,      // in float32
  bf16x3,     // operands as sums of two bfloat16, three products in one: products over all steps, and those
              // of a persistent kernel
  tf32,       // operands rounded to tf32; only where a caller asks for it
};

// The tiles that persistent kernels are compiled for (Tiles in kernels/persistent.h).
enum class TileKind { narrow, wide, low, tall };

// What these are called, in explain() and in Python.
template <class Value>
using Names = std::initializer_list<std::pair<const char*, Value>>;
inline constexpr Names<Strategy> kStrategies{
    {"step", Strategy::step}, {"cta", Strategy::cta}, {"cluster", Strategy::cluster}};
inline constexpr Names<Products> kProducts{{"automatic", Products::automatic},
                                           {"plain", Products::plain},
                                           {"bf16x3", Products::bf16x3},
                                           {"tf32", Products::tf32}};
inline constexpr Names<TileKind> kTiles{
    {"narrow", TileKind::narrow}, {"wide", TileKind::wide}, {"low", TileKind::low}, {"tall", TileKind::tall}};
inline constexpr Names<DType> kDTypes{{"float32", DType::float32},
                                      {"float64", DType::float64},
                                      {"float16", DType::float16},
                                      {"bfloat16", DType::bfloat16}};

template <class Value>
const char* name_of(Value value, Names<Value> names) {
  for (const auto& [name, named] : names) {
    if (named == value) return name;
  }
  return "";
}

// How a persistent kernel is launched. The letters of the kernels' comments: P ranks, n columns.
struct PersistentLaunch {
  int ranks = 0;    // CTAs that share the weights: 1, or a cluster of 2 to 16
  int columns = 0;  // rows of the batch that such a group has
  TileKind tile = TileKind::narrow;

  Strategy strategy() const { return ranks == 1 ? Strategy::cta : Strategy::cluster; }
  bool operator==(const PersistentLaunch& o) const {
    return ranks == o.ranks && columns == o.columns && tile == o.tile;
  }
  bool operator!=(const PersistentLaunch& o) const { return !(*this == o); }
};

// What a test or a measurement insists on; the rest is chosen.
struct Wish {
  std::optional<Strategy> strategy;
  int ranks = 0, columns = 0;  // 0: any
  std::optional<TileKind> tile;

  static Wish for_launch(const PersistentLaunch& launch) {
    return {launch.strategy(), launch.ranks, launch.columns, launch.tile};
  }
  bool any() const { return strategy || ranks || columns || tile; }
};

struct Request {
  Network network;
  Index steps = 0, batch = 0;
  DType dtype = DType::float32;
  bool training = false, tokens = false;
  bool stream = false;  // one step of a stream
  Products products = Products::automatic;
  Wish wish = {}, backward_wish = {};
};

// How one pass runs its steps.
struct PassPlan {
  Strategy strategy = Strategy::step;
  const char* reason = "";  // why this one, and none of the faster ones; reasons are literals
  PersistentLaunch launch;  // unless step by step
};

struct Plan {
  PassPlan forward, backward;

  Products products = Products::plain;
  double split_from = 0;  // bf16x3: multiplications that a product must have to be split
  const char* products_reason = "";

  bool stream_kernel = false;     // a step of a stream as one kernel a layer; if not, forward has the reason
  bool transpose_tokens = false;  // gather rows of W_ih transposed, instead of columns of W_ih
  int most_blocks = 1;            // of a launch whose CTAs go on with more elements
  Index sum_rows = 1;             // rows of dG in one chunk of a column sum

  bool splits(Index rows, Index columns, Index depth) const {
    return products == Products::bf16x3 &&
           static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(depth) >=
               split_from;
  }
};

// What was fastest where it was measured, of layers of one direction (tuned.h has those that are built in).
struct Tuned {
  int capability = 0, processors = 0;  // of the device
  const char* source = "";             // which device, and of which commit; a literal
  Cell cell = Cell::lstm;
  DType dtype = DType::float32;
  bool backward = false;  // or forward, of training or not
  Index hidden = 0, batch = 0;
  PersistentLaunch launch;                      // the fastest of the persistent kernel
  double launch_seconds = 0, step_seconds = 0;  // of one step: in that launch, and step by step
};
struct TunedTable {
  const Tuned* rows = nullptr;
  std::size_t count = 0;
};
TunedTable tuned();

Plan make_plan(const Request& request, const Limits& limits, const TunedTable& table = tuned());

// The plan in words, for explain().
std::map<std::string, std::string> describe(const Request& request, const Limits& limits,
                                            const TunedTable& table = tuned());

// Every launch of a persistent kernel that is possible, forward or backward, with what the model estimates
// for one step.
struct PossibleLaunch {
  PersistentLaunch launch;
  double seconds = 0;
};
std::vector<PossibleLaunch> possible_launches(const Request& request, const Limits& limits, bool backward);

}  // namespace fastrnn::cuda
