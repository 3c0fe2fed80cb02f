// Dropout whose key lies on the device, so that every replay of a graph draws masks of its own.
#pragma once

#include "core/philox.h"
#include "cuda/context.h"

namespace fastrnn::cuda {

// A dropout mask; none if the key is null.
struct KeyedDropout {
  Dropout dropout;
  const std::uint64_t* key = nullptr;  // of the masks (Dropout::make_key), on the device

  FRNN_HOST_DEVICE explicit operator bool() const { return key != nullptr; }
};

// The key of a call's dropout masks: key[0] = Dropout::make_key(seed, call + calls[0]++).
struct BeginDropout {
  static constexpr const char* kName = "begin_dropout";
  static constexpr int kThreads = kWarp;

  struct Params {
    std::uint64_t seed = 0, call = 0;
    std::uint64_t* calls = nullptr;  // or null
    std::uint64_t* key = nullptr;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    if (x.thread() != 0) return;
    p.key[0] = Dropout::make_key(p.seed, p.call + (p.calls ? p.calls[0]++ : 0));
  }
};

}  // namespace fastrnn::cuda
