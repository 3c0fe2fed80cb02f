// NumPy arrays to pointers, with their shapes checked.
#pragma once

#include <pybind11/numpy.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include "bind/tensors.h"
#include "core/buffers.h"
#include "core/network.h"

namespace fastrnn::bind {

namespace py = pybind11;

inline std::string shape_text(const py::array& a) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
  return text + ")";
}

template <class T>
void check_array(const py::array& a, std::initializer_list<Index> shape, const char* name) {
  if (!py::isinstance<py::array_t<T>>(a)) {
    throw py::type_error(std::string(name) + " has dtype " + py::str(a.dtype()).cast<std::string>() +
                         "; expected " + py::str(py::dtype::of<T>()).cast<std::string>());
  }
  const bool same =
      a.ndim() == static_cast<py::ssize_t>(shape.size()) && std::equal(shape.begin(), shape.end(), a.shape());
  if (same) return;
  std::string expected;
  for (const Index extent : shape) expected += (expected.empty() ? "(" : ", ") + std::to_string(extent);
  throw py::value_error(std::string(name) + " has shape " + shape_text(a) + "; expected " + expected + ")");
}

// No conversion: a converted copy would be gone before the kernels read it, or keep what they write.
inline py::array as_array(const py::handle& object, const char* name) {
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + " has type " +
                         std::string(py::str(py::type::of(object).attr("__name__"))) +
                         "; expected a NumPy array");
  }
  return py::reinterpret_borrow<py::array>(object);
}

inline void check_memory(const py::array& a, int flags, const char* name) {
  if ((a.flags() & flags) != flags)
    throw py::value_error(std::string(name) + " must be C-contiguous and aligned");
}
inline constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
inline constexpr int kPlain = py::array::c_style | kAligned;

// A C-contiguous array of this shape.
template <class T>
const T* pointer(const py::array& a, std::initializer_list<Index> shape, const char* name) {
  check_array<T>(a, shape, name);
  check_memory(a, kPlain, name);
  return static_cast<const T*>(a.data());
}
template <class T>
T* mutable_pointer(py::array& a, std::initializer_list<Index> shape, const char* name) {
  pointer<T>(a, shape, name);
  return static_cast<T*>(a.mutable_data());
}

// None is null.
template <class T>
const T* optional_pointer(const py::object& a, std::initializer_list<Index> shape, const char* name) {
  return a.is_none() ? nullptr : pointer<T>(as_array(a, name), shape, name);
}
template <class T>
T* optional_mutable_pointer(const py::object& a, std::initializer_list<Index> shape, const char* name) {
  if (a.is_none()) return nullptr;
  py::array array = as_array(a, name);
  return mutable_pointer<T>(array, shape, name);
}
// A bool array as bytes: NumPy lets one hold bytes that are neither 0 nor 1, which a C++ bool may not.
inline const std::uint8_t* optional_bytes(const py::object& a, std::initializer_list<Index> shape,
                                          const char* name) {
  return reinterpret_cast<const std::uint8_t*>(optional_pointer<bool>(a, shape, name));
}

// [T, B, width] with unit stride in the last axis.
template <class T>
Rows<const T> rows(const py::array& a, Index steps, Index batch, Index width, const char* name) {
  check_array<T>(a, {steps, batch, width}, name);
  const auto item = static_cast<py::ssize_t>(sizeof(T));
  check_memory(a, kAligned, name);
  if (a.size() == 0) return {static_cast<const T*>(a.data()), 0, 0};  // NumPy gives empty arrays any strides
  if (width > 1 && a.strides(2) != item)
    throw py::value_error(std::string(name) + " must have unit stride in its last axis");
  // An axis of length 1 is never stepped along, and may have any stride.
  const py::ssize_t time = steps > 1 ? a.strides(0) : 0, row = batch > 1 ? a.strides(1) : 0;
  if (time % item || row % item) throw py::value_error(std::string(name) + " has strides between elements");
  return {static_cast<const T*>(a.data()), time / item, row / item};
}
template <class T>
Rows<T> mutable_rows(py::array& a, Index steps, Index batch, Index width, const char* name) {
  const Rows<const T> r = rows<T>(a, steps, batch, width, name);
  return {static_cast<T*>(a.mutable_data()), r.time_stride, r.batch_stride};
}

inline bool is_tokens(const py::array& a) { return py::isinstance<py::array_t<std::int64_t>>(a); }

// NumPy's dtype of T is one object, but that of an array that was pickled another.  The number is compared
// first, as it is read from the object; it is that of another order of bytes too.
template <class T>
[[gnu::noinline, gnu::cold]] bool is_equal_dtype(const py::array& a) {
  return a.dtype().num() == py::dtype::of<T>().num() && py::isinstance<py::array_t<T>>(a);
}

// Is it what most arrays are: NumPy's own of T, no subclass's, C-contiguous and aligned?
template <class T>
bool is_plain(const py::handle& object) {
  const auto& numpy = py::detail::npy_api::get();
  if (Py_TYPE(object.ptr()) != numpy.PyArray_Type_) return false;
  const auto a = py::reinterpret_borrow<py::array>(object);
  return (a.dtype().is(py::dtype::of<T>()) || is_equal_dtype<T>(a)) && (a.flags() & kPlain) == kPlain;
}

// An array or, where they may be, a tensor in the memory of its owner, if it is plain.
template <class T>
struct View {
  const T* data = nullptr;
  const Index* sizes = nullptr;
  int axes = 0;

  bool of(const py::handle& object, bool tensors) {
    if (tensors && Py_TYPE(object.ptr()) == tensor_reader.type) {
      dlpack::Tensor t{};
      if (tensor_reader.read(object.ptr(), &t) != 0) {  // sparse, say
        PyErr_Clear();
        return false;
      }
      if (!is_plain<T>(t)) return false;
      *this = {reinterpret_cast<const T*>(static_cast<const char*>(t.data) + t.byte_offset), t.shape, t.ndim};
      return true;
    }
    if (!is_plain<T>(object)) return false;
    const auto array = py::reinterpret_borrow<py::array>(object);
    *this = {static_cast<const T*>(array.data()), array.shape(), static_cast<int>(array.ndim())};
    return true;
  }
};

// Parameters (const T), arrays or tensors, or gradients (T), arrays: contiguous, with as many elements as
// there should be, held for the call.
template <class T>
struct ArrayList {
  std::vector<py::object> held;
  std::vector<T*> pointers;

  ArrayList(const py::sequence& from, const std::vector<Index>& sizes, const char* name) {
    if (from.size() != sizes.size()) {
      throw py::value_error(std::string(name) + " has " + std::to_string(from.size()) + " arrays; expected " +
                            std::to_string(sizes.size()));
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::string label = std::string(name) + "[" + std::to_string(i) + "]";
      held.push_back(from[i]);
      const auto refuse_size = [&](const std::string& shape) {
        throw py::value_error(label + " has shape " + shape + "; expected " + std::to_string(sizes[i]) +
                              " elements");
      };
      if constexpr (std::is_const_v<T>) {
        View<std::remove_const_t<T>> tensor;
        if (Py_TYPE(held.back().ptr()) == tensor_reader.type && tensor.of(held.back(), true)) {
          if (std::accumulate(tensor.sizes, tensor.sizes + tensor.axes, Index{1}, std::multiplies<>()) !=
              sizes[i])
            refuse_size(py::str(held.back().attr("shape")).template cast<std::string>());
          pointers.push_back(tensor.data);
          continue;
        }
      }
      py::array a = as_array(held.back(), label.c_str());
      if (!py::isinstance<py::array_t<std::remove_const_t<T>>>(a)) {
        throw py::type_error(label + " has another dtype than the network");
      }
      if (a.size() != sizes[i]) refuse_size(shape_text(a));
      check_memory(a, kPlain, label.c_str());
      if constexpr (std::is_const_v<T>) {
        pointers.push_back(static_cast<T*>(a.data()));
      } else {
        pointers.push_back(static_cast<T*>(a.mutable_data()));
      }
    }
  }
};

// A new array; a large one begins with a cache line, as those of NumPy seldom do.  A vector that straddles
// two lines costs twice: 3 % of a whole GRU call.
inline py::array empty(const py::dtype& dtype, const Index* shape, int axes) {
  // Below so many bytes the time that aligning takes is not made up for.
  constexpr Index kWorthAligning = Index{1} << 16;
  const auto& numpy = py::detail::npy_api::get();
  const auto make = [&](const py::dtype& of, const Index* sizes, int count, void* memory) {
    // NumPy takes the dtype for itself, also where it fails.
    auto made = py::reinterpret_steal<py::array>(
        numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, py::dtype(of).release().ptr(), count, sizes, nullptr,
                                    memory, memory ? py::detail::npy_api::NPY_ARRAY_WRITEABLE_ : 0, nullptr));
    if (!made) throw py::error_already_set();
    return made;
  };
  Index bytes = dtype.itemsize();
  bool countable = true;
  for (int i = 0; i < axes; ++i) countable = !__builtin_mul_overflow(bytes, shape[i], &bytes) && countable;
  Index padded = 0;
  countable = countable && !__builtin_add_overflow(bytes, static_cast<Index>(kAlignment), &padded);
  if (countable && bytes >= kWorthAligning) {
    try {
      py::array memory = make(py::dtype::of<std::uint8_t>(), &padded, 1, nullptr);
      const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
      py::array aligned =
          make(dtype, shape, axes, static_cast<char*>(memory.mutable_data()) + (align_up(address) - address));
      if (numpy.PyArray_SetBaseObject_(aligned.ptr(), memory.release().ptr()) != 0)
        throw py::error_already_set();
      return aligned;
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_MemoryError)) throw;  // whose message is to be of this shape
    }
  }
  return make(dtype, shape, axes, nullptr);
}

// Is a call long enough to give up the interpreter lock for?  That costs some 70 ns, and beside a busy thread
// the wait for its turn to end, 5 ms: it took 3000 steps of a stream as long as 600 000 that keep the lock.
// `more` are rows of one step that something else in the call takes as long as: packing the weights, say.
constexpr Index kPackingRows = 8;
inline bool worth_unlocking(const Network& n, Index steps, Index batch, Index more = 0) {
  // Operations of 2 us with AVX-512, of 6 with the baseline; and those that a row's step of one unit is as
  // long as.
  constexpr double kLong = 2e5, kStep = 4e3;
  double row = 0;
  for (Index layer = 0; layer < n.layers; ++layer) {
    const LayerShape s = n.shape(layer);
    row += kStep + 2.0 * static_cast<double>(s.gate_rows()) * static_cast<double>(s.input + s.recurrent());
  }
  return static_cast<double>(n.directions) * static_cast<double>(steps * batch + more) * row >= kLong;
}

// Gives up the interpreter lock for a scope.  Unlike py::gil_scoped_release it survives the end of the
// interpreter: up to Python 3.13 a daemon thread that wants the lock back then is ended by unwinding its
// stack, which must not pass through a destructor; such a thread sleeps here instead until the process is
// gone.
class Unlocked {
 public:
  explicit Unlocked(bool worth_it = true) : state_(worth_it ? PyEval_SaveThread() : nullptr) {}
  ~Unlocked() {
    if (!state_) return;
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace fastrnn::bind
