#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "check.h"
#include "cpu/cpu_limit.h"

using namespace fastrnn::cpu;
namespace fs = std::filesystem;

namespace {

// A folder that stands for /sys/fs/cgroup and /proc/self/cgroup, removed at the end.
class FakeGroups {
 public:
  FakeGroups() {
    std::string path = (fs::temp_directory_path() / "fastrnn-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) throw std::runtime_error("cannot make a folder like " + path);
    root_ = path;
  }
  ~FakeGroups() { fs::remove_all(root_); }
  FakeGroups(const FakeGroups&) = delete;
  FakeGroups& operator=(const FakeGroups&) = delete;

  void write(const std::string& file, const std::string& text) const {
    const fs::path path = root_ / file;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  int quota() const { return cgroup_quota((root_ / "mount").string(), (root_ / "membership").string()); }

 private:
  fs::path root_;
};

// Sets FASTRNN_NUM_THREADS for a scope.
class ThreadsVariable {
 public:
  explicit ThreadsVariable(const char* value) {
    const char* before = std::getenv("FASTRNN_NUM_THREADS");
    was_set_ = before != nullptr;
    before_ = was_set_ ? before : "";
    setenv("FASTRNN_NUM_THREADS", value, 1);
  }
  ~ThreadsVariable() {
    if (was_set_) {
      setenv("FASTRNN_NUM_THREADS", before_.c_str(), 1);
    } else {
      unsetenv("FASTRNN_NUM_THREADS");
    }
  }
  ThreadsVariable(const ThreadsVariable&) = delete;
  ThreadsVariable& operator=(const ThreadsVariable&) = delete;

 private:
  bool was_set_;
  std::string before_;
};

}  // namespace

TEST(quota_absent) {
  const FakeGroups groups;
  CHECK(groups.quota() == 0);
  groups.write("membership", "0::/job\n");
  groups.write("mount/job/cpu.max", "max 100000\n");
  CHECK(groups.quota() == 0);
}

TEST(quota_version_2_rounds_up) {
  const FakeGroups groups;
  groups.write("membership", "0::/\n");
  groups.write("mount/cpu.max", "250000 100000\n");
  CHECK(groups.quota() == 3);
  groups.write("mount/cpu.max", "1000 100000\n");
  CHECK(groups.quota() == 1);
}

TEST(quota_of_the_tightest_ancestor) {
  const FakeGroups groups;
  groups.write("membership", "0::/a/b/c\n");
  groups.write("mount/a/b/c/cpu.max", "max 100000\n");
  groups.write("mount/a/b/cpu.max", "400000 100000\n");
  groups.write("mount/a/cpu.max", "200000 100000\n");
  CHECK(groups.quota() == 2);
  groups.write("mount/a/b/c/cpu.max", "100000 100000\n");
  CHECK(groups.quota() == 1);
}

TEST(quota_version_1) {
  const FakeGroups groups;
  groups.write("membership", "5:memory:/m\n4:cpu,cpuacct:/job\n1:cpuset:/s\n");
  groups.write("mount/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  groups.write("mount/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  CHECK(groups.quota() == 0);
  groups.write("mount/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
  CHECK(groups.quota() == 2);
}

TEST(quota_of_garbage_is_none) {
  const FakeGroups groups;
  groups.write("membership", "no colons here\n0:\n0::/job\n");
  groups.write("mount/job/cpu.max", "much too much\n");
  CHECK(groups.quota() == 0);
}

TEST(default_threads_from_the_system) {
  const ThreadsVariable variable("");  // empty is as good as unset
  CHECK(default_threads() >= 1);
}

TEST(default_threads_from_the_environment) {
  const ThreadsVariable variable("3");
  CHECK(default_threads() == 3);
}

TEST(default_threads_bad_value) {
  for (const char* bad : {"0", "-2", "two", "2.5", "3 ", "99999999999", "1025"}) {
    const ThreadsVariable variable(bad);
    CHECK_THROWS(default_threads(), std::invalid_argument, std::string("FASTRNN_NUM_THREADS is '") + bad);
  }
}
