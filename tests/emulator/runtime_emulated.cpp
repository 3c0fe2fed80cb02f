// The runtime without a GPU: two devices whose memory is host memory, of exact size and full of NaN when
// fresh, and whose work is done when the call returns.
#include "emulator/runtime_emulated.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>

#include "cuda/cublas.h"
#include "cuda/gemm.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

namespace {

struct Allocation {
  std::size_t bytes;
  int device;
};

struct Machine {
  std::mutex mutex;
  std::map<const char*, Allocation, std::less<>> allocations;  // by address
  std::size_t live = 0;
  DeviceInfo info{"emulated device", {}};
};

Machine& machine() {
  static Machine* const all = new Machine;
  return *all;
}

thread_local int current = 0;

// The allocation that a pointer points into; null for host memory.
const std::pair<const char* const, Allocation>* find(const void* memory) {
  const auto& all = machine().allocations;
  auto next = all.upper_bound(static_cast<const char*>(memory));
  if (next == all.begin()) return nullptr;
  --next;
  return static_cast<const char*>(memory) < next->first + next->second.bytes ? &*next : nullptr;
}

void check_held(const void* memory, std::size_t bytes, const char* call) {
  if (bytes && !emulated::holds(memory, bytes))
    throw Error(std::string(call) + " of " + std::to_string(bytes) +
                " bytes that are not within one allocation on the current device");
}

void check_host(const void* memory, const char* call) {
  if (device_of(memory) >= 0) throw Error(std::string(call) + " was given device memory for host memory");
}

}  // namespace

// ---- what tests ask

namespace emulated {

void set_limits(const Limits& limits) { machine().info.limits = limits; }

std::size_t live_bytes() {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return machine().live;
}

bool holds(const void* memory, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  const auto* found = find(memory);
  return found && found->second.device == current &&
         static_cast<const char*>(memory) + bytes <= found->first + found->second.bytes;
}

}  // namespace emulated

// ---- devices

std::string why_unavailable() { return ""; }
int device_count() { return emulated::kDevices; }
const DeviceInfo& device_info(int) { return machine().info; }
std::pair<int, int> driver_version() { return {0, 0}; }
std::pair<int, int> runtime_version() { return {0, 0}; }
int current_device() { return current; }

DeviceScope::DeviceScope(int device) : before_(current) {
  if (device < 0 || device >= emulated::kDevices) throw Error("there is no device " + std::to_string(device));
  current = device;
}
DeviceScope::~DeviceScope() { current = before_; }

// ---- streams and launches

void synchronize(Stream) {}
void wait_for(Stream, Stream) {}
bool capturing(Stream) { return false; }
void check_launch(const char*, Stream) {}
bool synchronous() { return true; }

// ---- memory

void* allocate(std::size_t bytes, Stream) {
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0)
    throw OutOfMemory("allocate(" + std::to_string(bytes) + " bytes) failed");
  std::memset(memory, 0xff, bytes);  // NaN in every float type
  const std::lock_guard<std::mutex> lock(machine().mutex);
  machine().allocations[static_cast<const char*>(memory)] = {bytes, current};
  machine().live += bytes;
  return memory;
}

void release(void* memory, Stream) noexcept {
  if (!memory) return;
  {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    const auto found = machine().allocations.find(static_cast<const char*>(memory));
    if (found == machine().allocations.end()) std::abort();  // released twice, or never allocated
    machine().live -= found->second.bytes;
    machine().allocations.erase(found);
  }
  std::free(memory);
}

void Memory::reset() noexcept {
  release(memory_, stream_);
  memory_ = nullptr;
  capacity_ = 0;
}

int device_of(const void* memory) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  const auto* found = find(memory);
  return found ? found->second.device : -1;
}

// ---- cuBLAS, which there is none of

CublasScope::CublasScope(Stream stream) : stream_(stream) {}
CublasScope::~CublasScope() {}
bool gemm_cublas(Stream, const Gemm&) { return false; }
void set_cublas_folders(std::vector<std::string>) {}
std::string describe_cublas() { return "the emulated device has none"; }

// ---- copies

void copy_to_device(void* to, const void* from, std::size_t bytes, Stream) {
  check_held(to, bytes, "copy_to_device");
  check_host(from, "copy_to_device");
  if (bytes) std::memcpy(to, from, bytes);
}

void copy_to_host(void* to, const void* from, std::size_t bytes, Stream) {
  check_held(from, bytes, "copy_to_host");
  check_host(to, "copy_to_host");
  if (bytes) std::memcpy(to, from, bytes);
}

void copy_on_device(void* to, const void* from, std::size_t bytes, Stream) {
  check_held(from, bytes, "copy_on_device");
  check_held(to, bytes, "copy_on_device");
  if (bytes) std::memmove(to, from, bytes);
}

void set_bytes(void* to, int value, std::size_t bytes, Stream) {
  check_held(to, bytes, "set_bytes");
  if (bytes) std::memset(to, value, bytes);
}

}  // namespace fastrnn::cuda
