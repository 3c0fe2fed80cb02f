#include <algorithm>
#include <mutex>
#include <vector>

#include "cuda/runtime.h"

namespace fastrnn::cuda {
namespace {

// Streams that no fork is using, and whose fork they were in last: made once, since that is slow.
struct Spare {
  struct Side {
    Stream side, last;
    int device;
  };
  std::mutex mutex;
  std::vector<Side> sides;
};

Spare& spare() {
  static Spare* const all = new Spare;  // never destroyed, as nor are the streams
  return *all;
}

// One that is still part of another stream's capture cannot be had before that ends.
Stream take_side(Stream stream, int device) {
  const std::lock_guard<std::mutex> lock(spare().mutex);
  auto& sides = spare().sides;
  const auto found = std::find_if(sides.begin(), sides.end(), [&](const Spare::Side& s) {
    return s.device == device && (s.last == stream || !capturing(s.side));
  });
  if (found == sides.end()) return make_stream();
  const Stream side = found->side;
  sides.erase(found);
  return side;
}

}  // namespace

Fork::Fork(Stream stream) : stream_(stream), device_(current_device()) {
  side_ = take_side(stream, device_);
  wait_for(side_, stream);
}

void Fork::join() {
  wait_for(stream_, side_);
  joined_ = true;
}

Fork::~Fork() {
  try {
    if (!joined_) join();
    const std::lock_guard<std::mutex> lock(spare().mutex);
    spare().sides.push_back({side_, stream_, device_});
  } catch (const Error&) {  // of a device that refuses everything by now; what is on the side is lost with it
  }
}

}  // namespace fastrnn::cuda
