// Memory: aligned buffers that grow and are reused, and an arena that hands out typed views of one.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>

#include "core/types.h"

namespace fastrnn {

// A cache line, and the widest vector.
inline constexpr std::size_t kAlignment = 64;

inline constexpr std::size_t align_up(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Do two arrays share memory?
template <class T>
bool overlap(const T* a, Index a_count, const T* b, Index b_count) {
  const std::less<const T*> before;  // of any two pointers
  return before(a, b + b_count) && before(b, a + a_count);
}

// Bytes that only ever grow; contents are not kept when they do.
class Buffer {
 public:
  void* reserve(std::size_t bytes) {
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(std::aligned_alloc(kAlignment, align_up(bytes)));
      if (!memory_) throw std::bad_alloc();
      capacity_ = align_up(bytes);
    }
    return memory_.get();
  }
  std::size_t capacity() const { return capacity_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t capacity_ = 0;
};

// Lays out arrays one after another.  Used twice with the same code: with no memory it only adds up
// the size, with memory it hands out the views, so size and layout can't disagree.
class Arena {
 public:
  Arena() = default;
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(Index count) {
    T* view = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += align_up(static_cast<std::size_t>(count) * sizeof(T));
    return view;
  }
  template <class T>
  T* take_zeroed(Index count) {
    T* view = take<T>(count);
    if (view) std::memset(static_cast<void*>(view), 0, static_cast<std::size_t>(count) * sizeof(T));
    return view;
  }
  std::size_t used() const { return used_; }

 private:
  char* memory_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace fastrnn
