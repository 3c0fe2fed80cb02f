// How a call is computed: shape, element type and the device's limits in, strategy and launch sizes out. Pure
// host code: a plan can be asked for a device that is not there.
#pragma once

#include <map>
#include <string>

#include "core/half.h"
#include "core/network.h"
#include "cuda/limits.h"

namespace fastrnn::cuda {

// How the steps of a sequence are run.
enum class Strategy {
  step,     // products and a pointwise kernel for every step
  cta,      // all steps in one CTA a group of rows, weights on chip
  cluster,  // the same in a cluster, h exchanged by distributed shared memory
  grid,     // the same over the whole device, h exchanged by global memory
};

// How products over all steps are computed.
enum class Products {
  plain,   // in the element type; 16-bit types sum in float
  bf16x3,  // float32 as the sum of two bfloat16, three products
  tf32,    // float32 rounded to tf32
};

struct Request {
  Network network;
  Index steps = 0, batch = 0;
  DType dtype = DType::float32;
  bool training = false, tokens = false;
  bool tf32 = false;  // allowed
};

struct Plan {
  Strategy strategy = Strategy::step;
  std::string reason;  // why this strategy and none of the faster ones
  Products products = Products::plain;
  std::string products_reason;
  bool transpose_tokens = false;  // gather rows of W_ih transposed instead of columns of W_ih
};

Plan make_plan(const Request& request, const Limits& limits);

// The plan in words, for explain().
std::map<std::string, std::string> describe(const Request& request, const Limits& limits);

}  // namespace fastrnn::cuda
