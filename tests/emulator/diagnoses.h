// Is a bug found, whatever the schedule?
#pragma once

#include <string>
#include <vector>

#include "check.h"
#include "emulator/schedule.h"
#include "emulator/site.h"

namespace fastrnn::cuda::emulated {

// Calls right() and wrong() in every schedule, with so many seeds. The first has to pass; the second has to
// be reported, as one of these: what is noticed first depends on the schedule.
template <class Right, class Wrong>
void check_diagnosed(int seeds, const std::vector<std::string>& diagnoses, Right right, Wrong wrong) {
  for (const Schedule& schedule : all_schedules(seeds)) {
    const ScheduleScope scope(schedule);
    right();
    std::string message = "no error";
    try {
      wrong();
    } catch (const KernelError& error) {
      message = error.what();
    }
    bool known = false;
    for (const auto& diagnosis : diagnoses) known |= message.find(diagnosis) != std::string::npos;
    if (!known) check::fail(__FILE__, __LINE__, message + "; expected: " + diagnoses[0]);
  }
}

}  // namespace fastrnn::cuda::emulated
