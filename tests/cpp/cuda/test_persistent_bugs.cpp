// Is each way to get the protocol of the persistent kernels wrong found? The kernels run as they are, on a
// context that leaves out, or changes, one of their calls.
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda/kernels/persistent_backward.h"
#include "cuda/kernels/persistent_forward.h"
#include "emulator/diagnoses.h"
#include "emulator/launch_emulated.h"

using namespace fastrnn;
using namespace fastrnn::cuda;
using namespace fastrnn::cuda::emulated;

namespace {

enum class Bug {
  none,
  wrong_phase,        // waits for the other parity
  missing_expect_tx,  // the barrier counts no bytes
  overwritten,        // no sync() between reading h, or the sums, and sending
  lanes_apart,        // no sync_warp() between other lanes' reading and sending
  leaves_early,       // rank 0 does not meet the others at the end
  one_buffer,         // for the parts of dh that two iterations add
};

// What the backward of the tests has for the parts: two buffers of [ranks][columns][units].
constexpr int kParts = 2 * 8 * 16;

// A view in which the second buffer is the first.
template <class Shared>
struct Folded {
  Shared base;
  bool folds;

  int at(int i) const { return folds ? i % kParts : i; }
  auto load(int i) const { return base.load(at(i)); }
  template <class T>
  void store(int i, T value) const {
    base.store(at(i), value);
  }
  Folded from(int i) const { return {base.from(at(i)), false}; }
};

#define FRNN_AS_IT_IS(call)                \
  template <class... A>                    \
  decltype(auto) call(A&&... a) const {    \
    return x_.call(std::forward<A>(a)...); \
  }

template <class X, Bug bug>
class Faulty {
 public:
  static constexpr bool kClusters = true;
  template <class T>
  using Shared = typename X::template Shared<T>;
  explicit Faulty(X& x) : x_(x) {}

  FRNN_AS_IT_IS(thread)
  FRNN_AS_IT_IS(lane)
  FRNN_AS_IT_IS(warp)
  FRNN_AS_IT_IS(block)
  FRNN_AS_IT_IS(shuffle_xor)
  FRNN_AS_IT_IS(ldmatrix_x4)
  FRNN_AS_IT_IS(mma)
  FRNN_AS_IT_IS(cp_async_4)
  FRNN_AS_IT_IS(cp_async_commit)
  FRNN_AS_IT_IS(cp_async_wait)
  FRNN_AS_IT_IS(mbarrier_init)
  FRNN_AS_IT_IS(fence_mbarrier_init)
  FRNN_AS_IT_IS(st_async)

  template <class T>
  auto view(Slot<T> slot) {
    if constexpr (bug == Bug::one_buffer && std::is_same_v<T, float>) {
      return Folded<Shared<T>>{x_.view(slot), slot.count == 2 * kParts};
    } else {
      return x_.view(slot);
    }
  }
  template <class T>
  auto map_rank(const T& place, int rank) {
    return x_.map_rank(place, rank);
  }
  template <class S>
  auto map_rank(const Folded<S>& place, int rank) {
    return x_.map_rank(place.base, rank);
  }
  void sync() {
    if (bug != Bug::overwritten || syncs_++ == 0) x_.sync();  // the first ends the preparations
  }
  void sync_warp() {
    if (bug != Bug::lanes_apart) x_.sync_warp();
  }
  template <class Barrier>
  void mbarrier_arrive_expect_tx(const Barrier& barrier, int bytes) {
    bug == Bug::missing_expect_tx ? x_.mbarrier_arrive(barrier)
                                  : x_.mbarrier_arrive_expect_tx(barrier, bytes);
  }
  template <class Barrier>
  void mbarrier_wait_parity(const Barrier& barrier, int parity) {
    x_.mbarrier_wait_parity(barrier, bug == Bug::wrong_phase ? 1 - parity : parity);
  }
  void cluster_arrive() {
    if (meets()) x_.cluster_arrive();
  }
  void cluster_wait() {
    if (meets()) x_.cluster_wait();
    ++meetings_;
  }

 private:
  bool meets() { return bug != Bug::leaves_early || meetings_ == 0 || x_.cluster_rank() != 0; }

  X& x_;
  int syncs_ = 0, meetings_ = 0;
};

template <class Kernel, Bug bug>
struct Planted {
  static constexpr const char* kName = Kernel::kName;
  static constexpr int kThreads = Kernel::kThreads;
  using Params = typename Kernel::Params;
  template <class X>
  static void run(const Params& p, X& x) {
    Faulty<X, bug> faulty(x);
    Kernel::run(p, faulty);
  }
};

// A pass of two ranks whose outputs do not matter.
constexpr std::size_t kSteps = 4, kBatch = 3, kHidden = 20, kUnits = kSteps * kBatch * kHidden;
using T = bfloat16_t;

template <class K>
struct Problem {
  using Kernel = K;
  static constexpr std::size_t kGates = Kernel::kGates;

  std::vector<T> weights = std::vector<T>(kGates * kHidden * kHidden, narrow<T>(0.125f));
  std::vector<T> y = std::vector<T>(kUnits);
  typename Kernel::Params p;

  Problem() {
    p.shape.hidden = kHidden;
    p.shape.batch = kBatch;
    p.shape.ranks = 2;
    p.parts[0].walk = {nullptr, nullptr, kSteps, kBatch, false};
    p.parts[0].weight_hh = weights.data();
  }
  template <Bug bug>
  void run() const {
    const Grid grid = {p.shape.blocks(), typename Kernel::Layout(p.shape).shared.bytes(), p.shape.ranks};
    launch<Planted<Kernel, bug>>(Stream{}, grid, p);
  }
};

template <class Cell>
struct Forward : Problem<PersistentForward<Cell, T, Tiles<T>::Narrow>> {
  std::vector<float> input = std::vector<float>(kUnits * Cell::kGates, 0.25f);
  std::vector<T> h = std::vector<T>(kBatch * kHidden);
  std::vector<float> c = std::vector<float>(kBatch * kHidden);

  Forward() {
    PersistentForwardPart<T>& part = this->p.parts[0];
    part.input = input.data();
    part.input_stride = Cell::kGates * kHidden;
    part.y = contiguous(this->y.data(), Index{kBatch}, Index{kHidden});
    part.h = h.data();
    part.c = c.data();
  }
};

template <class Cell>
struct Backward : Problem<PersistentBackward<Cell, T, Tiles<T>::Narrow>> {
  std::vector<T> gates = std::vector<T>(4 * kUnits, narrow<T>(0.5f)), dg = std::vector<T>(4 * kUnits);
  std::vector<float> cells = std::vector<float>(kUnits, 0.25f), state = std::vector<float>(kBatch * kHidden);

  Backward() {
    PersistentBackwardPart<T>& part = this->p.parts[0];
    part.gates = gates.data();
    part.cells = cells.data();
    part.h_prev = this->y.data();
    part.y = part.dy = contiguous<const T>(this->y.data(), Index{kBatch}, Index{kHidden});
    part.dg = {dg.data(), nullptr, Index{Cell::kGates == 3 ? 4 : Cell::kGates} * kHidden};
    part.state = state.data();
  }
};

template <class Pass, Bug bug>
void check_bug(const std::vector<std::string>& diagnoses) {
  const Pass pass;
  check_diagnosed(4, diagnoses, [&] { pass.template run<Bug::none>(); }, [&] { pass.template run<bug>(); });
}

template <Bug bug>
void check_backward(const std::vector<std::string>& diagnoses) {
  check_bug<Backward<PersistentLstmBackward>, bug>(diagnoses);
  check_bug<Backward<PersistentGruBackward>, bug>(diagnoses);
}
template <Bug bug>
void check_forward(const std::vector<std::string>& diagnoses) {
  check_bug<Forward<PersistentLstm>, bug>(diagnoses);
  check_bug<Forward<PersistentElman>, bug>(diagnoses);
}

}  // namespace

TEST(finds_that_a_persistent_kernel_waits_for_the_wrong_phase) {
  check_forward<Bug::wrong_phase>({"wrong mbarrier phase: thread"});
  check_backward<Bug::wrong_phase>({"wrong mbarrier phase: thread"});
}
TEST(finds_that_a_persistent_kernel_expects_no_bytes) {
  check_forward<Bug::missing_expect_tx>({"race: thread", "what nothing has written"});
  check_backward<Bug::missing_expect_tx>({"race: thread", "what nothing has written"});
}
TEST(finds_that_a_persistent_kernel_overwrites_what_is_read) {
  check_forward<Bug::overwritten>({"race: thread", "what nothing has written"});
  check_forward<Bug::lanes_apart>({"race: thread"});
  check_backward<Bug::overwritten>({"race: thread", "what nothing has written"});
}
TEST(finds_that_a_persistent_kernel_has_one_buffer) { check_backward<Bug::one_buffer>({"race: thread"}); }
TEST(finds_that_a_rank_leaves_early) {
  check_forward<Bug::leaves_early>({"early exit: thread"});
  check_backward<Bug::leaves_early>({"early exit: thread"});
}
