// A stack of layers on the device: the counterpart of csrc/ops.  Arguments mean what they mean there, with
// pointers to memory of the current device; nothing here reads device memory on the host, waits, or keeps a
// pointer to host memory after it has returned, so that every call can be captured in a graph.
//
// T is float, double, half_t or bfloat16_t.  16-bit types compute in float: c, pre-activations and sums are
// float inside a call, h and weights are T.  Parameters are read where they lie, in torch.nn's layout;
// nothing is packed.
//
// Lengths, tokens and rows lie on the device and are checked only with FASTRNN_CUDA_SYNC=1; without it, what
// is out of range is clamped. Aliasing: h_n may be h0 and c_n c0; x, y and their gradients overlap nothing
// else.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/half.h"
#include "core/network.h"
#include "cuda/plan.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

// What a training forward saves beside x, y and the parameters.
template <class T>
class Reserve {
 public:
  struct Part {
    T* gates = nullptr;           // [T,B,saved_gates,H], activated
    Compute<T>* cells = nullptr;  // [T,B,H], LSTM
  };
  // Called by forward. While a graph is captured there has to be memory enough already: it is not the graph's
  // alone, since other calls use it too. Where a graph uses it, it stays.
  void layout(Stream stream, const Network& network, Index steps, Index batch);

  Part part(Index i) const { return parts_[static_cast<std::size_t>(i)]; }
  // [T,B,D*R], all but the last layer.
  T* output(Index layer) const { return outputs_[static_cast<std::size_t>(layer)]; }
  // Key of all masks (Dropout::make_key), on the device.
  std::uint64_t* dropout_key() const { return dropout_key_; }
  bool belongs_to(const Network& network, Index steps, Index batch) const;
  std::size_t bytes() const { return bytes_; }

 private:
  std::vector<Part> parts_;
  std::vector<T*> outputs_;
  std::uint64_t* dropout_key_ = nullptr;
  Network network_;
  Index steps_ = -1, batch_ = -1;
  std::size_t bytes_ = 0;
  Memory memory_;
  bool captured_ = false;                // is memory_ part of a graph?
  std::vector<Memory> captured_before_;  // what graphs had before it had to grow
};

// How a call may be computed.
struct Options {
  Products products = Products::automatic;  // of float32
  // On the device, or null: added to `call`, and then increased by one by every training forward with
  // masks, so that a forward replayed from a graph draws new ones.  Backward needs none: the reserve has
  // the key.
  std::uint64_t* calls = nullptr;
  Wish wish = {};  // for tests and measurements
};

// Inference, or training if `reserve` is given.
template <class T>
void forward(Stream stream, const Network& network, const std::vector<const T*>& parameters,
             const ForwardArguments<T>& args, Reserve<T>* reserve, const Options& options = {});

// `seed` and `call` of the arguments are not used: the reserve knows.
template <class T>
void backward(Stream stream, const Network& network, const BackwardArguments<T>& args,
              const Reserve<T>& reserve, const Options& options = {});

// N streams with their state on the device, advanced one step or a sequence at a time.  One thread at a time;
// the parameters must stay where they are.
template <class T>
class Streams {
 public:
  Streams(Stream stream, const Network& network, std::vector<const T*> parameters, Index batch);

  // x [count,I] or tokens [count]; `rows` (count of them, distinct, on the device) or null for all.  Output
  // in y().
  void step(Stream stream, const T* x, const std::int64_t* tokens, const Index* rows, Index count,
            const Options& options = {});
  // steps, x or tokens, y
  void run(Stream stream, const ForwardArguments<T>& sequence, const Options& options = {});

  Index batch() const { return batch_; }
  const Network& network() const { return network_; }
  // The state between calls, which a caller may read and write.
  T* h() { return h_; }           // [L,N,R]
  Compute<T>* c() { return c_; }  // [L,N,H], LSTM
  T* y() { return y_; }           // [count,R]

 private:
  void step_kernels(Stream stream, const T* x, const std::int64_t* tokens, const Index* rows, Index count);

  Network network_;
  std::vector<const T*> parameters_;
  Index batch_;
  Memory memory_;
  T *h_ = nullptr, *y_ = nullptr;
  Compute<T>* c_ = nullptr;
  T* between_[2] = {};  // [N,R] each: outputs of the layers below the last, in turn, or a copy of x
  std::uint32_t* ticket_ = nullptr;
};

// What forward and backward would do with such a call on the current device, and why.
std::map<std::string, std::string> explain(const Request& request);
// Launches of the persistent kernel that the current device could do that pass with.
std::vector<PossibleLaunch> launches(const Request& request, bool backward);

}  // namespace fastrnn::cuda
