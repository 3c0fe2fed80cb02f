// The runtime without a GPU: two devices whose memory is host memory, of exact size and full of NaN when
// fresh, and whose work is done when the call returns.
#include "emulator/runtime_emulated.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <vector>

#include "cuda/cublas.h"
#include "cuda/gemm.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

namespace {

struct Graph {
  std::vector<std::function<void()>> pieces;
  std::vector<void*> memory;  // of its own that has been released
  ~Graph() {
    for (void* one : memory) std::free(one);
  }
};

struct Allocation {
  std::size_t bytes;
  int device;
  std::shared_ptr<Graph> graph;  // or null
};

// Who takes part, and whether the stream that the capture began with waits for all they have done.
struct Capture {
  std::uint64_t id;
  void* origin;
  std::map<void*, bool> joined;
  std::shared_ptr<Graph> graph;
};

struct Machine {
  std::mutex mutex;
  std::map<const char*, Allocation, std::less<>> allocations;  // by address
  std::size_t live = 0;
  DeviceInfo info{"emulated device", {}};
  std::vector<Capture> captures;
  std::uint64_t captures_begun = 0;
  std::set<void*> destroyed;        // streams
  std::shared_ptr<Graph> captured;  // last
  std::ostringstream waits;
  int (*lock_held)() = nullptr;
};

Machine& machine() {
  static Machine* const all = new Machine;
  return *all;
}

thread_local int current = 0;

// Devices that a call has set up: a bit each, since that was last asked.
std::atomic<unsigned> set_up{0};
void use_device() { set_up |= 1u << current; }

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

// The capture that a stream takes part in, or null.
Capture* capture_of(Stream stream) {
  for (Capture& c : machine().captures) {
    if (c.origin == stream.handle || c.joined.count(stream.handle)) return &c;
  }
  return nullptr;
}

std::string name_of(Stream stream) {
  std::ostringstream name;
  name << "0x" << std::hex << reinterpret_cast<std::uintptr_t>(stream.handle);
  return name.str();
}

void finish_work();

void host_waits(const std::string& earlier) {
  use_device();
  finish_work();
  const std::lock_guard<std::mutex> lock(machine().mutex);
  const bool held = machine().lock_held && machine().lock_held() != 0;
  machine().waits << "cuda:" << current << " host for " << earlier << (held ? " locked\n" : "\n");
}

void check_host(const void* memory, const char* call) {
  if (device_of(memory) >= 0) throw Error(std::string(call) + " was given device memory for host memory");
}

}  // namespace

// ---- what tests ask

namespace {

// What is queued in an AnyOrderScope.
struct Piece {
  std::function<void()> run;
  std::shared_ptr<const bool> after;  // what has to have happened, or null
};
struct Queues {
  std::mt19937 bits;
  std::map<void*, std::deque<Piece>> of_stream;
};
thread_local std::unique_ptr<Queues> queues;

void finish_work() {
  while (queues && !queues->of_stream.empty()) {
    auto& all = queues->of_stream;
    std::vector<decltype(all.begin())> ready;
    for (auto it = all.begin(); it != all.end(); ++it) {
      const Piece& next = it->second.front();
      if (!next.after || *next.after) ready.push_back(it);
    }
    if (ready.empty()) throw Error("streams wait for each other");
    const auto chosen = ready[queues->bits() % ready.size()];
    const Piece piece = std::move(chosen->second.front());
    chosen->second.pop_front();
    if (chosen->second.empty()) all.erase(chosen);
    piece.run();
  }
}

}  // namespace

namespace emulated {

AnyOrderScope::AnyOrderScope(unsigned seed) {
  queues = std::make_unique<Queues>(Queues{std::mt19937(seed), {}});
}
AnyOrderScope::~AnyOrderScope() {
  finish_work();
  queues.reset();
}

void work(Stream stream, std::function<void()> piece) {
  use_device();
  const auto there = [piece = std::move(piece), device = current] {
    const DeviceScope scope(device);
    piece();
  };
  {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    if (const Capture* capture = capture_of(stream)) {
      capture->graph->pieces.emplace_back(there);
      return;
    }
  }
  if (!queues) return there();
  queues->of_stream[stream.handle].push_back({there, nullptr});
}

void set_limits(const Limits& limits) { machine().info.limits = limits; }

std::size_t live_bytes() {
  finish_work();
  const std::lock_guard<std::mutex> lock(machine().mutex);
  return machine().live;
}

bool holds(const void* memory, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  const auto* found = find(memory);
  return found && found->second.device == current &&
         static_cast<const char*>(memory) + bytes <= found->first + found->second.bytes;
}

void begin_capture(Stream stream) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  machine().captures.push_back({++machine().captures_begun, stream.handle, {}, std::make_shared<Graph>()});
}

void replay() {
  const std::shared_ptr<Graph> graph = machine().captured;
  for (const auto& piece : graph->pieces) piece();
}

void end_capture(Stream stream) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  auto& all = machine().captures;
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const Capture& c) { return c.origin == stream.handle; });
  if (found == all.end()) throw Error(name_of(stream) + " is not being captured");
  const Capture ended = *found;
  all.erase(found);
  machine().captured = ended.graph;
  for (const auto& [other, joined] : ended.joined) {
    if (!joined) throw Error(name_of({other}) + " took part in a capture that ends without waiting for it");
  }
}

void destroy(Stream stream) {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  machine().destroyed.insert(stream.handle);
}

std::string take_waits() {
  const std::lock_guard<std::mutex> lock(machine().mutex);
  const std::string all = machine().waits.str();
  machine().waits.str("");
  return all;
}

void ask_lock(int (*held)()) { machine().lock_held = held; }

unsigned take_set_up() { return set_up.exchange(0); }

}  // namespace emulated

// ---- devices

std::string why_unavailable() { return ""; }
int device_count() { return emulated::kDevices; }
const DeviceInfo& device_info(int) { return machine().info; }
std::pair<int, int> driver_version() { return {0, 0}; }
std::pair<int, int> runtime_version() { return {0, 0}; }
int current_device() { return current; }
const Limits& current_limits() { return machine().info.limits; }

DeviceScope::DeviceScope(int device) : before_(current) {
  if (device < 0 || device >= emulated::kDevices) throw Error("there is no device " + std::to_string(device));
  current = device;
}
DeviceScope::~DeviceScope() { current = before_; }

// ---- streams and launches

void synchronize(Stream stream) {
  refuse_in_graph(stream, "a stream that is being captured cannot be waited for");
  host_waits(name_of(stream));
}

void synchronize_device() {
  {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    if (!machine().captures.empty())
      throw Error("a device cannot be waited for while a stream is being captured");
  }
  host_waits("all");
}

void wait_for(Stream later, Stream earlier) {
  if (later == earlier) return;
  use_device();
  const std::lock_guard<std::mutex> lock(machine().mutex);
  Capture *const of_later = capture_of(later), *const of_earlier = capture_of(earlier);
  if (of_later && of_later != of_earlier)
    throw Error(name_of(later) + " is being captured, and cannot wait for " + name_of(earlier) +
                ", which is not");
  if (of_earlier) {
    if (later.handle == of_earlier->origin) {
      of_earlier->joined[earlier.handle] = true;
    } else {
      of_earlier->joined[later.handle] = false;
    }
  }
  if (queues && !of_earlier) {
    const auto happened = std::make_shared<bool>(false);
    queues->of_stream[earlier.handle].push_back({[happened] { *happened = true; }, nullptr});
    queues->of_stream[later.handle].push_back({[] {}, happened});
  }
  machine().waits << "cuda:" << current << " " << name_of(later) << " for " << name_of(earlier) << "\n";
}

Stream make_stream() {
  use_device();
  static std::atomic<std::uintptr_t> made{0x1000};
  return {reinterpret_cast<void*>(++made)};
}

std::uint64_t capture_id(Stream stream) {
  use_device();
  const std::lock_guard<std::mutex> lock(machine().mutex);
  if (machine().destroyed.count(stream.handle)) throw Error(name_of(stream) + " was destroyed");
  const Capture* const capture = capture_of(stream);
  return capture ? capture->id : 0;
}

void check_launch(const char*, Stream) {}

namespace {
std::atomic<bool> checks_everything{true};
}
void emulated::check_everything(bool yes) { checks_everything = yes; }
bool synchronous() { return checks_everything; }

// ---- memory

void* allocate(std::size_t bytes, Stream stream) {
  if (bytes == 0) return nullptr;
  use_device();
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0)
    throw OutOfMemory("allocate(" + std::to_string(bytes) + " bytes) failed");
  std::memset(memory, 0xff, bytes);  // NaN in every float type
  const std::lock_guard<std::mutex> lock(machine().mutex);
  machine().allocations[static_cast<const char*>(memory)] = {
      bytes, current, capture_of(stream) ? capture_of(stream)->graph : nullptr};
  machine().live += bytes;
  return memory;
}

void release(void* memory, Stream stream) noexcept {
  if (!memory) return;
  const std::uint64_t capture = capture_id(stream);
  const auto forget = [memory, stream, capture] {
    const std::lock_guard<std::mutex> lock(machine().mutex);
    const auto found = machine().allocations.find(static_cast<const char*>(memory));
    if (found == machine().allocations.end()) std::abort();  // released twice, or never allocated
    const std::shared_ptr<Graph> graph = found->second.graph;
    if (capture && graph != capture_of(stream)->graph) std::abort();  // a graph gives back its own alone
    machine().live -= found->second.bytes;
    machine().allocations.erase(found);
    if (graph) {
      graph->memory.push_back(memory);
    } else {
      std::free(memory);
    }
  };
  if (capture) {
    forget();
  } else {
    emulated::work(stream, forget);
  }
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

void copy_to_device(void* to, const void* from, std::size_t bytes, Stream stream) {
  refuse_in_graph(stream, kNoCopyInGraph);
  host_waits(name_of(stream));
  check_held(to, bytes, "copy_to_device");
  check_host(from, "copy_to_device");
  if (bytes) std::memcpy(to, from, bytes);
}

void copy_to_host(void* to, const void* from, std::size_t bytes, Stream stream) {
  refuse_in_graph(stream, kNoCopyInGraph);
  host_waits(name_of(stream));
  check_held(from, bytes, "copy_to_host");
  check_host(to, "copy_to_host");
  if (bytes) std::memcpy(to, from, bytes);
}

void copy_on_device(void* to, const void* from, std::size_t bytes, Stream stream) {
  check_held(from, bytes, "copy_on_device");
  check_held(to, bytes, "copy_on_device");
  emulated::work(stream, [=] {
    if (bytes) std::memmove(to, from, bytes);
  });
}

void set_bytes(void* to, int value, std::size_t bytes, Stream stream) {
  check_held(to, bytes, "set_bytes");
  emulated::work(stream, [=] {
    if (bytes) std::memset(to, value, bytes);
  });
}

}  // namespace fastrnn::cuda

// ---- the same for Python

#define FRNN_EXPORT __attribute__((visibility("default")))

namespace cuda = fastrnn::cuda;

FRNN_EXPORT void fastrnn_emulated_begin_capture(void* stream) { cuda::emulated::begin_capture({stream}); }
FRNN_EXPORT int fastrnn_emulated_end_capture(void* stream) {
  try {
    cuda::emulated::end_capture({stream});
    return 0;
  } catch (const cuda::Error&) {
    return 1;
  }
}
FRNN_EXPORT void fastrnn_emulated_replay() { cuda::emulated::replay(); }
FRNN_EXPORT void fastrnn_emulated_wait_for(void* later, void* earlier) { cuda::wait_for({later}, {earlier}); }
FRNN_EXPORT const char* fastrnn_emulated_take_waits() {
  static std::string text;
  text = cuda::emulated::take_waits();
  return text.c_str();
}
FRNN_EXPORT void fastrnn_emulated_ask_lock(int (*held)()) { cuda::emulated::ask_lock(held); }
FRNN_EXPORT unsigned fastrnn_emulated_take_set_up() { return cuda::emulated::take_set_up(); }
FRNN_EXPORT void fastrnn_emulated_check_everything(int yes) { cuda::emulated::check_everything(yes != 0); }
