#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/runtime.h"

namespace fastrnn::cuda {
namespace {

// Memory that was let go on a stream that is being captured, and that is not the graph's own: until the
// capture has ended, nothing else can be released on that stream.
struct LetGo {
  struct Piece {
    void* memory;
    int device;
    Stream stream;
  };
  std::mutex mutex;
  std::vector<Piece> pieces;
};

LetGo& let_go() {
  static LetGo* const all = new LetGo;  // never destroyed: arrays may outlive everything that could order it
  return *all;
}

void release_let_go() {
  const std::lock_guard<std::mutex> lock(let_go().mutex);
  auto& pieces = let_go().pieces;
  const auto done = [](const LetGo::Piece& piece) {
    try {
      const DeviceScope scope(piece.device);
      if (capturing(piece.stream)) return false;
      release(piece.memory, piece.stream);
    } catch (const Error&) {  // a stream that its library has destroyed: there is no order to release it in
    }
    return true;
  };
  pieces.erase(std::remove_if(pieces.begin(), pieces.end(), done), pieces.end());
}

}  // namespace

void* Memory::reserve(std::size_t bytes, Stream stream) {
  if (bytes > capacity_) {
    if (memory_) stream_ = stream;  // which comes after the last use
    reset();
    release_let_go();
    memory_ = allocate(bytes, stream);
    capacity_ = bytes;
    device_ = current_device();
    capture_ = capture_id(stream);
  }
  stream_ = stream;
  return memory_;
}

void Memory::reset() noexcept {
  if (memory_) {
    try {
      const DeviceScope scope(device_);
      const std::uint64_t capture = capture_id(stream_);
      if (capture && capture != capture_) {
        const std::lock_guard<std::mutex> lock(let_go().mutex);
        let_go().pieces.push_back({memory_, device_, stream_});
      } else {
        release(memory_, stream_);
      }
    } catch (const Error&) {  // at the end of the process the driver may be gone, and the memory with it
    }
  }
  memory_ = nullptr;
  capacity_ = 0;
}

void Memory::swap(Memory& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(capacity_, other.capacity_);
  std::swap(device_, other.device_);
  std::swap(stream_, other.stream_);
  std::swap(capture_, other.capture_);
}

}  // namespace fastrnn::cuda
