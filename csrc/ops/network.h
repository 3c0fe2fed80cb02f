// A stack of layers: what a caller asks for, turned into calls of the back end.  The only place that knows
// how layers, directions, dropout, reserve and memory hang together.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/buffers.h"
#include "core/network.h"
#include "core/philox.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/sequence.h"

namespace fastrnn {

// The table of the instruction set in force; for quantised weights it has no backward.
template <class W>
using Table = std::conditional_t<cpu::kQuantized<W>, cpu::ForwardKernels<W>, cpu::Kernels<W>>;
template <class W>
const Table<W>& current_kernels();

// Parameters packed for forward, as W.  Quantised weights are for inference.
template <class W>
class Weights {
 public:
  using Weight = W;
  explicit Weights(const Network& network) : network_(network) {}
  // Throws std::invalid_argument for a network with longer sums than W allows.
  void pack(const std::vector<const Compute<W>*>& parameters);

  const Network& network() const { return network_; }
  bool packed() const { return kernels_ != nullptr; }
  const cpu::ForwardKernels<W>& kernels() const { return *kernels_; }
  const cpu::PackedLayer<W>& part(Index i) const { return parts_[static_cast<std::size_t>(i)]; }
  std::size_t bytes() const { return memory_.capacity(); }

 private:
  Network network_;
  const cpu::ForwardKernels<W>* kernels_ = nullptr;
  std::vector<cpu::PackedLayer<W>> parts_;
  Buffer memory_;
};

// Steps of a segment when c is kept every `checkpoint` steps: that many rounded up to whole blocks of
// backward.  A GRU keeps nothing, its segment is one block; 0 for what saves no gates and needs no segments.
Index segment_steps(const LayerShape& shape, Index steps, Index batch, Index checkpoint);

// What a training forward saves beside x and y.
template <class T>
class Reserve {
 public:
  // With a checkpoint, gates are not saved but computed again in backward, from c every so many steps.
  explicit Reserve(Index checkpoint = 0) : checkpoint_(checkpoint) {}

  struct Part {
    T* gates = nullptr;       // [T,B,reserved_gates,H]; null with segments
    T* cells = nullptr;       // [T,B,H], LSTM; null with segments
    T* kept_cells = nullptr;  // with segments, [T / segment,B,H], LSTM
  };
  void layout(const Network& network, Index steps, Index batch);

  Part part(Index i) const { return parts_[static_cast<std::size_t>(i)]; }
  T* output(Index layer) const {
    return outputs_[static_cast<std::size_t>(layer)];
  }  // [T,B,D*R], all but the last layer
  Index segment() const { return segment_; }
  bool belongs_to(const Network& network, Index steps, Index batch) const;
  std::size_t bytes() const { return bytes_; }

 private:
  std::vector<Part> parts_;
  std::vector<T*> outputs_;
  Network network_;
  Index checkpoint_, segment_ = 0;
  Index steps_ = -1, batch_ = -1;
  std::size_t bytes_ = 0;
  Buffer memory_;
};

// Memory of one call, kept from call to call so that none is allocated in the steady state.
struct Scratch {
  Buffer buffer;
  cpu::Schedule schedule;
  std::vector<StateNoise> noise;  // of each layer; empty where there is none
};

// Inference, or training if `reserve` is given.
template <class W>
void forward(const Weights<W>& weights, const ForwardArguments<Compute<W>>& args,
             Reserve<Compute<W>>* reserve, Scratch& scratch);

template <class T>
void backward(const Network& network, const BackwardArguments<T>& args, const Reserve<T>& reserve,
              Scratch& scratch);

// Which kernels such a call runs with weights W, and why; `checkpoint` as a Reserve has it.
template <class W>
std::map<std::string, std::string> explain(const Network& network, Index steps, Index batch, bool training,
                                           bool tokens, Index checkpoint);

// A Scratch from the process's spare ones, returned at the end of the scope.
class BorrowedScratch {
 public:
  BorrowedScratch();
  ~BorrowedScratch();
  BorrowedScratch(const BorrowedScratch&) = delete;
  BorrowedScratch& operator=(const BorrowedScratch&) = delete;
  Scratch& operator*() { return *scratch_; }

 private:
  std::unique_ptr<Scratch> scratch_;
};

// N streams with their state, advanced one step or a sequence at a time.
template <class W>
class Stream {
 public:
  using T = Compute<W>;
  Stream(std::shared_ptr<const Weights<W>> weights, Index batch);

  // `rows` (count of them, distinct) or null for all.  Output in y().
  void step(const T* x, const std::int64_t* tokens, const Index* rows, Index count);
  void run(const ForwardArguments<T>& sequence);  // steps, x or tokens, y

  // For who reads or writes h and c: throws while another thread is inside, and keeps others out until
  // leave().
  void enter();
  void leave();

  Index batch() const { return batch_; }
  const Network& network() const { return weights_->network(); }
  T* h() { return h_; }
  T* c() { return c_; }
  T* y() { return y_; }

 private:
  class Entry;  // refuses a second thread
  void advance(ForwardArguments<T>& args, const Index* rows);

  std::shared_ptr<const Weights<W>> weights_;
  Index batch_;
  Buffer memory_;
  T *h_ = nullptr, *c_ = nullptr, *y_ = nullptr;
  T* x_ = nullptr;  // a copy of an x that lies in y
  std::vector<std::uint8_t> seen_;
  Scratch scratch_;
  std::atomic<unsigned> user_{0};  // the process that has a thread inside, as stream.cpp numbers them
};

}  // namespace fastrnn
