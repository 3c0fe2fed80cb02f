// The device as host code sees it: devices, streams, memory, copies, errors. Two implementations, chosen by
// what is linked: runtime_cuda.cpp, and tests/emulator/runtime_emulated.cpp, whose device memory is host
// memory. No CUDA header, so that what is built on this compiles without a toolkit.
//
// Streams carry the order: everything here that takes one is queued on it and returns at once, unless its
// comment says that it waits. Whatever takes no device works on the current one (DeviceScope).
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/limits.h"

namespace fastrnn::cuda {

// ---- errors

// A call that the device or its driver refused: what() has the call, the error, file and line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
// There is not as much memory on the device.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

// ---- devices

// Why there is no device to compute on ("no CUDA driver ..."); empty if there is one. Never throws.
std::string why_unavailable();

int device_count();  // 0 if unavailable

struct DeviceInfo {
  std::string name;
  Limits limits;
};
// Found out once, but for limits.clusters: only current_limits() asks the device for those.
const DeviceInfo& device_info(int device);

std::pair<int, int> driver_version();   // (13, 0); (0, 0) without a driver
std::pair<int, int> runtime_version();  // what this was built with

int current_device();
const Limits& current_limits();  // of the current device; found out once

// Makes a device current, and puts back what was at the end of the scope: of a thread that has used no device
// yet, none (the first one stays), so that the first is not set up for a caller who works on another.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_;
  [[maybe_unused]] void* context_ = nullptr;  // the driver's, of a GPU
};

// ---- streams

// A stream of the current device by its driver handle, as other libraries give it; not owned. Null, the
// default, is the legacy default stream.
struct Stream {
  void* handle = nullptr;

  bool operator==(const Stream& other) const { return handle == other.handle; }
};

void synchronize(Stream stream);  // waits
void synchronize_device();        // waits for every stream
// What is queued on `later` from now on waits for what is on `earlier`. Waiting for a stream that is being
// captured takes `later` into the capture; one that is in a capture may not wait for one that is not.
void wait_for(Stream later, Stream earlier);
Stream make_stream();  // a new one of the current device, never destroyed
// The number of the capture that the stream takes part in, which no other one has; 0 if there is none. One
// that has failed, and is not ended yet, counts as another.
std::uint64_t capture_id(Stream stream);
// Whether the stream's work goes into a graph instead of to the device.
inline bool capturing(Stream stream) { return capture_id(stream) != 0; }

// Throws, with this message, if the stream is being captured.
inline void refuse_in_graph(Stream stream, const char* message) {
  if (capturing(stream)) throw Error(message);
}
inline constexpr const char* kNoCopyInGraph =
    "a copy between host and device cannot be captured in a graph; have the array on the device before";

// Work beside that of a stream: `side` waits for what is on the stream, and by join(), or at the latest at
// the end of the scope, the stream waits for what was queued on `side`. In a capture both take part.
class Fork {
 public:
  explicit Fork(Stream stream);
  ~Fork();
  Fork(const Fork&) = delete;
  Fork& operator=(const Fork&) = delete;

  Stream side() const { return side_; }
  void join();

 private:
  Stream stream_, side_;
  int device_;
  bool joined_ = false;
};

// ---- launches

// After every launch: throws if it was refused. With FASTRNN_CUDA_SYNC=1 in the environment it also waits, so
// that a fault inside the kernel is reported here, under this kernel's name; not while a graph is captured.
void check_launch(const char* kernel, Stream stream);

// Whether FASTRNN_CUDA_SYNC=1 was set when first asked.
bool synchronous();

// ---- memory

// From a pool of this library's own on the current device, in the order of the stream: memory that was freed
// on it may be given out again before the kernels that use it have run, since they run before those that come
// after. The pool keeps what it has, so that a call like an earlier one asks the driver for nothing. At least
// 256-byte aligned; null for 0 bytes. Fresh memory holds anything (the emulated runtime: NaN).
void* allocate(std::size_t bytes, Stream stream);
void release(void* memory, Stream stream) noexcept;  // null is fine

// Memory of one owner, released on the stream it was last reserved on. What is allocated in a capture belongs
// to the graph, and is there from each replay to its end, or until it is released after one.
class Memory {
 public:
  Memory() = default;
  Memory(std::size_t bytes, Stream stream) { reserve(bytes, stream); }
  ~Memory() { reset(); }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }

  // At least this many bytes; contents are kept only if there are as many already.
  void* reserve(std::size_t bytes, Stream stream);
  void reset() noexcept;
  void* get() const { return memory_; }
  std::size_t capacity() const { return capacity_; }

 private:
  void swap(Memory& other) noexcept;

  void* memory_ = nullptr;
  std::size_t capacity_ = 0;
  int device_ = 0;
  Stream stream_;
  std::uint64_t capture_ = 0;  // in which it was allocated
};

// Which device a pointer of any library belongs to; -1 for host memory.
int device_of(const void* memory);

// ---- copies

// Between host and device: each waits until the host's memory was read, or is written. Not in a graph, which
// would keep the host's address and copy whatever lies there at each replay.
void copy_to_device(void* to, const void* from, std::size_t bytes, Stream stream);
void copy_to_host(void* to, const void* from, std::size_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, std::size_t bytes, Stream stream);
void set_bytes(void* to, int value, std::size_t bytes, Stream stream);

}  // namespace fastrnn::cuda
