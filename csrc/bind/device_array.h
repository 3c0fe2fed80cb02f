// Arrays on a device: what the module `_cuda` takes and returns in place of NumPy's.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/half.h"
#include "cuda/runtime.h"

namespace fastrnn::bind {

namespace py = pybind11;

// Float types are those of networks; int64 and bool are those of tokens, lengths, rows and resets. Arrays of
// other libraries may come with any other, to be refused by name.
struct ElementType {
  std::uint8_t code = 0;  // DLPack's
  std::uint8_t bits = 0;

  static ElementType of_name(const std::string& name);
  std::string name() const;
  Index bytes() const { return (bits + 7) / 8; }
  bool operator==(const ElementType& o) const { return code == o.code && bits == o.bits; }
};
template <class T>
ElementType element_type();

// Memory on a device, shared by an array and its views, and the stream that its last use was queued on.
struct Storage {
  Storage() = default;
  Storage(int on, cuda::Stream first);  // with that device current
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  // Before a use on another stream than the last one, that stream waits for the last use.
  void follow(cuda::Stream next);
  // Before the host reads: a graph that was captured with this memory may be replayed on any stream, and all
  // that can be waited for is everything.
  void wait_for_replays() const;

  int device = 0;
  cuda::Stream stream;
  bool captured = false;        // was it ever used in a capture?
  cuda::Memory memory;          // its own; null if the memory belongs to someone else
  cuda::Stream home;            // the stream on which that one releases it
  std::shared_ptr<void> owner;  // keeps it until then
  bool home_known = true;       // if not, the host waits for the last use
};

class DeviceArray {
 public:
  // Contiguous, of fresh memory on the current device, ordered on `stream`.
  static DeviceArray empty(std::vector<Index> shape, ElementType type, cuda::Stream stream);
  // Over memory that `owner` keeps.
  static DeviceArray over(void* data, std::vector<Index> shape, ElementType type, int device,
                          cuda::Stream stream, std::shared_ptr<void> owner);

  Index ndim() const { return static_cast<Index>(shape.size()); }
  Index size() const;
  bool contiguous() const;
  int device() const { return storage->device; }
  cuda::Stream stream() const { return storage->stream; }
  bool aligned() const {
    return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(type.bytes()) == 0;
  }

  std::shared_ptr<Storage> storage;
  char* data = nullptr;
  ElementType type;
  std::vector<Index> shape, strides;  // strides in elements
  bool writeable = true;
};

// to = from, of the same shape, type and device; a stride of 0 in `from` broadcasts.  On to's stream.
void copy(const DeviceArray& to, const DeviceArray& from);
DeviceArray contiguous_copy(const DeviceArray& from);

// A Python object held by C++ that may be let go by any thread, also while the interpreter ends.
std::shared_ptr<void> hold(py::object object);

inline cuda::Stream stream_of(std::uintptr_t handle) {
  // 1 is another name of the legacy default stream; one name makes streams comparable.
  return {reinterpret_cast<void*>(handle == 1 ? 0 : handle)};
}
inline std::uintptr_t handle_of(cuda::Stream stream) {  // as DLPack has it, where 0 is no stream
  const auto handle = reinterpret_cast<std::uintptr_t>(stream.handle);
  return handle == 0 ? 1 : handle;
}

std::string shape_text(const std::vector<Index>& shape);

void register_device_array(py::module_& m);
void register_device_calls(py::module_& m);

}  // namespace fastrnn::bind
