// Arrays on the (emulated) device for tests, between guards of NaN that must still be there at the end.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

template <class T>
T not_a_number() {
  return narrow<T>(std::numeric_limits<Compute<T>>::quiet_NaN());
}

// Values of T, from and to doubles.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(Index count)
      : DeviceArray(std::vector<double>(static_cast<std::size_t>(count), std::nan(""))) {}
  explicit DeviceArray(const std::vector<double>& values) : count_(values.size()) {
    memory_.reserve(bytes(), {});
    set(values);
  }

  T* data() const { return static_cast<T*>(memory_.get()) + kGuard; }
  void set(const std::vector<double>& values) const {  // as many as before
    std::vector<T> all(count_ + 2 * kGuard, not_a_number<T>());
    for (std::size_t i = 0; i < count_; ++i) all[kGuard + i] = narrow<T>(static_cast<Compute<T>>(values[i]));
    copy_to_device(memory_.get(), all.data(), bytes(), {});
  }
  void forget() const { set(std::vector<double>(count_, std::nan(""))); }
  // What it holds; checks the guards.
  std::vector<double> values() const {
    std::vector<T> all(count_ + 2 * kGuard);
    copy_to_host(all.data(), memory_.get(), bytes(), {});
    std::vector<double> values;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const auto value = static_cast<double>(widen(all[i]));
      if (i >= kGuard && i < kGuard + count_) {
        values.push_back(value);
      } else {
        CHECK(std::isnan(value));
      }
    }
    return values;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t bytes() const { return (count_ + 2 * kGuard) * sizeof(T); }

  std::size_t count_;
  Memory memory_;
};

// The same for whole numbers, without guards: kernels only read them.
template <class T>
class DeviceList {
 public:
  explicit DeviceList(const std::vector<T>& values) : size_(values.size()) {
    if (!values.empty())
      copy_to_device(memory_.reserve(size_ * sizeof(T), {}), values.data(), size_ * sizeof(T), {});
  }
  T* data() const { return static_cast<T*>(memory_.get()); }  // null if empty

 private:
  std::size_t size_;
  Memory memory_;
};

}  // namespace fastrnn::cuda
