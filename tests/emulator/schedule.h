// In which order the threads of a launch run, and when what is under way arrives.
#pragma once

#include <cstdint>
#include <vector>

namespace fastrnn::cuda::emulated {

enum class Policy {
  in_order,     // first come, first served; stores to other CTAs and copies arrive at once
  reverse,      // last come, first served; they arrive when nothing else can happen, the last one first
  random,       // any thread, also between two calls of the context; they arrive at any time
  warp_ahead,   // random, but one warp runs whenever it can
  cta_starved,  // random, but one CTA runs only when nothing else can
};

struct Schedule {
  Policy policy = Policy::in_order;
  std::uint64_t seed = 0;
  bool races = false;  // look for races in shared memory (clock.h): several times slower
};

// What launches of this thread follow from now on to the end of the scope.  Without one: in order, and
// without looking for races, unless the environment has FASTRNN_EMULATED_RACES.
class ScheduleScope {
 public:
  explicit ScheduleScope(Schedule schedule);
  ~ScheduleScope();
  ScheduleScope(const ScheduleScope&) = delete;
  ScheduleScope& operator=(const ScheduleScope&) = delete;

 private:
  Schedule before_;
};

const Schedule& current_schedule();

// One of each policy, and `seeds` of those that choose at random; all look for races.
std::vector<Schedule> all_schedules(int seeds);

}  // namespace fastrnn::cuda::emulated
