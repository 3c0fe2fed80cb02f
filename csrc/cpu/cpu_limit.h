// How many CPUs this process may use: the default number of threads.
#pragma once

#include <string>

namespace fastrnn::cpu {

// FASTRNN_NUM_THREADS if set (std::invalid_argument unless it is a whole number in 1..max_threads), else
// the CPUs of the affinity mask, no more than the cgroup's quota.
int default_threads();

// The CPU quota of a control group in whole CPUs, rounded up, or 0 when there is none. Reads version 1 and 2
// files below `mount` ("/sys/fs/cgroup") for the group that `membership` ("/proc/self/cgroup") names, and for
// every group above it: the tightest counts.
int cgroup_quota(const std::string& mount, const std::string& membership);

}  // namespace fastrnn::cpu
