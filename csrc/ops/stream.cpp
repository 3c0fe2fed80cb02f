// Streams, and the scratch that calls borrow.
#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <stdexcept>

#include "core/check.h"
#include "ops/network.h"

namespace fastrnn {

// ---- scratch

namespace {

struct SpareScratch {
  std::mutex mutex;
  std::vector<std::unique_ptr<Scratch>> spare;
};
// Never destroyed: a thread may still return its scratch while the process ends.  Forks wait for the mutex,
// or the child would inherit it locked by a thread that it does not have.
SpareScratch& spare_scratch() {
  static SpareScratch* const all = [] {
    auto* made = new SpareScratch;
    pthread_atfork([] { spare_scratch().mutex.lock(); }, [] { spare_scratch().mutex.unlock(); },
                   [] { spare_scratch().mutex.unlock(); });
    return made;
  }();
  return *all;
}

}  // namespace

BorrowedScratch::BorrowedScratch() {
  SpareScratch& all = spare_scratch();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.spare.empty()) {
    scratch_ = std::make_unique<Scratch>();
  } else {
    scratch_ = std::move(all.spare.back());
    all.spare.pop_back();
  }
}

BorrowedScratch::~BorrowedScratch() {
  // What one huge call needed is not held for ever.
  constexpr std::size_t kKept = std::size_t{64} << 20;
  if (scratch_->buffer.capacity() > kKept) return;
  SpareScratch& all = spare_scratch();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.spare.push_back(std::move(scratch_));
}

// ---- streams

namespace {

// The number of this process: one more than its parent's.  fork() copies a stream that another thread is
// inside, but not the thread, which would keep the child out for ever.
std::atomic<unsigned> process{1};
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { process.fetch_add(1, std::memory_order_relaxed); });

}  // namespace

template <class W>
class Stream<W>::Entry {
 public:
  explicit Entry(Stream& stream) : stream_(stream) { stream_.enter(); }
  ~Entry() { stream_.leave(); }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

 private:
  Stream& stream_;
};

template <class W>
void Stream<W>::enter() {
  const unsigned own = process.load(std::memory_order_relaxed);
  unsigned user = user_.load(std::memory_order_relaxed);
  if (user == own || !user_.compare_exchange_strong(user, own, std::memory_order_acquire)) {
    throw std::runtime_error("this stream is in use by another thread; one thread at a time may use it");
  }
}

template <class W>
void Stream<W>::leave() {
  user_.store(0, std::memory_order_release);
}

template <class W>
Stream<W>::Stream(std::shared_ptr<const Weights<W>> weights, Index batch)
    : weights_(std::move(weights)), batch_(batch) {
  const Network& n = network();
  FRNN_CHECK(n.directions == 1, "a stream has no future to run a reverse direction over");
  FRNN_CHECK(batch >= 1, "a stream needs at least one row");
  n.check_call(1, batch);
  FRNN_CHECK(weights_->packed(), "weights are not packed");
  const auto layout = [&](Arena arena) {
    h_ = arena.take_zeroed<T>(n.layers * batch * n.first.recurrent());
    c_ = n.first.cell == Cell::lstm ? arena.take_zeroed<T>(n.layers * batch * n.first.hidden) : nullptr;
    y_ = arena.take_zeroed<T>(batch * n.first.recurrent());
    x_ = arena.take<T>(batch * n.first.input);
    return arena.used();
  };
  layout(Arena(memory_.reserve(layout(Arena()))));
  seen_.assign(static_cast<std::size_t>(batch), 0);
}

template <class W>
void Stream<W>::step(const T* x, const std::int64_t* tokens, const Index* rows, Index count) {
  const Entry entry(*this);
  if (rows) {
    std::optional<Index> outside, twice;
    for (Index i = 0; i < count && !outside && !twice; ++i) {
      if (rows[i] < 0 || rows[i] >= batch_) {
        outside = rows[i];
      } else if (seen_[static_cast<std::size_t>(rows[i])]++) {
        twice = rows[i];
      }
    }
    for (Index i = 0; i < count; ++i) {
      if (rows[i] >= 0 && rows[i] < batch_) seen_[static_cast<std::size_t>(rows[i])] = 0;
    }
    if (outside) {
      throw std::invalid_argument("rows holds " + std::to_string(*outside) + "; expected indices from 0 to " +
                                  std::to_string(batch_ - 1) + " (the stream has " + std::to_string(batch_) +
                                  " rows)");
    }
    if (twice)
      throw std::invalid_argument("rows holds " + std::to_string(*twice) +
                                  " twice; expected distinct indices");
  }
  const Index values = count * network().first.input;
  if (x && overlap(x, values, y_, batch_ * network().first.recurrent())) {
    x = std::copy_n(x, values, x_) - values;  // fed back: y is written while x is still read
  }
  ForwardArguments<T> args;
  args.steps = 1;
  args.batch = count;
  args.x = contiguous(x, count, network().first.input);
  args.tokens = tokens;
  args.y = contiguous(y_, count, network().first.recurrent());
  advance(args, rows);
}

template <class W>
void Stream<W>::run(const ForwardArguments<T>& sequence) {
  const Entry entry(*this);
  ForwardArguments<T> args = sequence;
  args.batch = batch_;
  advance(args, nullptr);
}

template <class W>
void Stream<W>::advance(ForwardArguments<T>& args, const Index* rows) {
  args.h0 = args.h_n = h_;
  args.c0 = args.c_n = c_;
  args.state_rows = rows;
  args.state_batch = batch_;
  forward<W>(*weights_, args, nullptr, scratch_);
}

template class Stream<float>;
template class Stream<double>;
template class Stream<bfloat16_t>;
template class Stream<std::int8_t>;

}  // namespace fastrnn
