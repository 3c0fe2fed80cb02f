// Memory while a graph is captured: what the graph has stays, and what it has no part in is released later.
#include "check.h"
#include "cuda/stack.h"
#include "emulator/runtime_emulated.h"

using namespace fastrnn;
using namespace fastrnn::cuda;
using emulated::begin_capture;
using emulated::destroy;
using emulated::end_capture;
using emulated::holds;

namespace {

const Stream captured{reinterpret_cast<void*>(0x77)}, other{reinterpret_cast<void*>(0x99)};

}  // namespace

TEST(a_reserve_stays_where_a_graph_has_it) {
  Network n;
  n.first.input = 3;
  n.first.hidden = 5;
  Reserve<float> reserve;
  reserve.layout(captured, n, 2, 2);
  const float* const gates = reserve.part(0).gates;
  begin_capture(captured);
  reserve.layout(captured, n, 2, 2);
  CHECK(reserve.part(0).gates == gates);
  CHECK_THROWS(reserve.layout(captured, n, 3, 2), Error, "make an equal call before the capture");
  end_capture(captured);
  const std::size_t live = emulated::live_bytes();
  for (const Index steps : {30, 60}) {  // the larger one alone: the smaller one is no graph's
    reserve.layout(captured, n, steps, 2);
    CHECK(holds(gates, 1));
    CHECK(emulated::live_bytes() == live + reserve.bytes());
  }
}

TEST(memory_let_go_in_a_capture_is_released_after_it) {
  const std::size_t live = emulated::live_bytes();
  Memory before(100, captured);
  const void* const place = before.get();
  begin_capture(captured);
  {
    const Memory scratch(100, captured);
  }
  CHECK(emulated::live_bytes() == live + 100);
  before.reset();
  Memory of_graph(10, captured);
  CHECK(holds(place, 100));
  end_capture(captured);
  const Memory after(10, other);
  CHECK(!holds(place, 100));
  of_graph.reset();
  CHECK(emulated::live_bytes() == live + 10);
}

TEST(memory_of_one_graph_is_not_released_into_another) {
  const std::size_t live = emulated::live_bytes();
  begin_capture(captured);
  Memory of_first(100, captured);
  end_capture(captured);
  const void* const place = of_first.get();
  begin_capture(captured);
  of_first.reset();
  CHECK(holds(place, 100));
  end_capture(captured);
  const Memory after(10, other);
  CHECK(!holds(place, 100));
  CHECK(emulated::live_bytes() == live + 10);
}

TEST(memory_on_a_stream_that_was_destroyed_keeps_no_other_back) {
  const Stream theirs{reinterpret_cast<void*>(0x55)};
  const std::size_t live = emulated::live_bytes();
  Memory first(100, captured), lost(20, theirs), last(100, captured);
  begin_capture(captured);
  begin_capture(theirs);
  for (Memory* const memory : {&first, &lost, &last}) memory->reset();
  end_capture(theirs);
  end_capture(captured);
  destroy(theirs);
  for (int call = 0; call < 2; ++call) {
    const Memory next(10, other);
    CHECK(emulated::live_bytes() == live + 20 + 10);
  }
}

TEST(an_emulated_capture_has_the_rules_of_a_real_one) {
  begin_capture(captured);
  CHECK_THROWS(wait_for(captured, other), Error, "cannot wait for 0x99");
  CHECK_THROWS(synchronize(captured), Error, "cannot be waited for");
  CHECK_THROWS(synchronize_device(), Error, "cannot be waited for");
  wait_for(other, captured);
  CHECK(capturing(other));
  wait_for(captured, other);
  end_capture(captured);
  CHECK(!capturing(captured) && !capturing(other));
  begin_capture(captured);
  wait_for(other, captured);
  CHECK_THROWS(end_capture(captured), Error, "without waiting for it");
  CHECK_THROWS(end_capture(captured), Error, "is not being captured");
}

TEST(a_fork_joins_and_takes_part_in_a_capture) {
  Stream side, second;
  begin_capture(captured);
  {
    Fork fork(captured);
    side = fork.side();
    CHECK(capturing(side));
    const Fork inner(captured);
    second = inner.side();
    CHECK(!(second == side));
    fork.join();
  }  // joins the inner one
  {
    const Fork again(captured), elsewhere(other);  // nothing of the capture for another stream
    CHECK(again.side() == side || again.side() == second);
    CHECK(!capturing(elsewhere.side()));
  }
  end_capture(captured);
  const Fork free(other);
  CHECK(!capturing(free.side()));
}

// What the order of streams lets happen, happens in some order.
TEST(work_is_done_in_any_order_that_streams_allow) {
  int first_of_side = 0;
  for (unsigned seed = 0; seed < 20; ++seed) {
    const emulated::AnyOrderScope scope(seed);
    std::string done;
    const auto note = [&](Stream stream, char c) { emulated::work(stream, [&done, c] { done += c; }); };
    note(captured, 'a');
    {
      const Fork fork(captured);
      note(fork.side(), 's');
      note(captured, 'm');
    }
    note(captured, 'z');
    CHECK(done.empty());
    synchronize(captured);
    CHECK(done == "asmz" || done == "amsz");
    first_of_side += done == "asmz";
  }
  CHECK(first_of_side > 0 && first_of_side < 20);
}
