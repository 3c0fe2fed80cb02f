#include "cpu/cpu_limit.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "cpu/parallel.h"

namespace fastrnn::cpu {
namespace {

int affinity_cpus() {
  // The kernel refuses a mask smaller than its own, whose size depends on how it was built: try larger ones.
  for (std::size_t cpus = 1024; cpus <= 1U << 20U; cpus *= 2) {
    cpu_set_t* mask = CPU_ALLOC(cpus);
    if (mask == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(cpus);
    const int status = sched_getaffinity(0, bytes, mask);
    const int error = errno;
    const int count = status == 0 ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (count > 0) return count;
    if (error != EINVAL) break;
  }
  return 1;
}

// Quota of one group in CPUs, 0 if it sets none. Version 2 writes "QUOTA PERIOD" or "max PERIOD" in cpu.max,
// version 1 two files, the quota -1 for none.
int group_quota(const std::string& directory) {
  double quota = 0;
  double period = 0;
  std::ifstream v2(directory + "/cpu.max");
  if (!(v2 >> quota >> period)) {
    std::ifstream v1_quota(directory + "/cpu.cfs_quota_us");
    std::ifstream v1_period(directory + "/cpu.cfs_period_us");
    if (!(v1_quota >> quota) || !(v1_period >> period)) return 0;
  }
  return quota > 0 && period > 0 ? static_cast<int>(std::ceil(quota / period)) : 0;
}

}  // namespace

int cgroup_quota(const std::string& mount, const std::string& membership) {
  int tightest = 0;
  std::ifstream groups(membership);
  // A line is "ID:CONTROLLERS:PATH"; version 2 has no controllers, version 1 mounts them in folders of that
  // name.
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    std::string path = line.substr(second + 1);
    while (true) {
      if (!path.empty() && path.back() == '/') path.pop_back();
      const int quota = group_quota(mount + (controllers.empty() ? "" : "/" + controllers) + path);
      if (quota > 0) tightest = tightest == 0 ? quota : std::min(tightest, quota);
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return tightest;
}

int default_threads() {
  if (const char* text = std::getenv("FASTRNN_NUM_THREADS"); text != nullptr && *text != '\0') {
    const std::string_view value(text);
    int n = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
    if (error != std::errc() || end != value.data() + value.size() || n < 1 || n > max_threads) {
      throw std::invalid_argument("FASTRNN_NUM_THREADS is '" + std::string(value) +
                                  "'; expected a whole number from 1 to " + std::to_string(max_threads));
    }
    return n;
  }
  const int cpus = std::min(affinity_cpus(), max_threads);
  const int quota = cgroup_quota("/sys/fs/cgroup", "/proc/self/cgroup");
  return quota > 0 ? std::min(cpus, quota) : cpus;
}

}  // namespace fastrnn::cpu
