// NumPy arrays to pointers, with their shapes checked.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/types.h"

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

// A C-contiguous array of this shape.
template <class T>
const T* pointer(const py::array& a, std::initializer_list<Index> shape, const char* name) {
  check_array<T>(a, shape, name);
  if (!(a.flags() & py::array::c_style)) throw py::value_error(std::string(name) + " must be C-contiguous");
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
  return a.is_none() ? nullptr : pointer<T>(py::cast<py::array>(a), shape, name);
}
template <class T>
T* optional_mutable_pointer(const py::object& a, std::initializer_list<Index> shape, const char* name) {
  if (a.is_none()) return nullptr;
  py::array array = py::cast<py::array>(a);
  return mutable_pointer<T>(array, shape, name);
}

// [T, B, width] with unit stride in the last axis.
template <class T>
Rows<const T> rows(const py::array& a, Index steps, Index batch, Index width, const char* name) {
  check_array<T>(a, {steps, batch, width}, name);
  const auto item = static_cast<py::ssize_t>(sizeof(T));
  if (a.size() == 0) return {static_cast<const T*>(a.data()), 0, 0};  // NumPy gives empty arrays any strides
  if (width > 1 && a.strides(2) != item)
    throw py::value_error(std::string(name) + " must have unit stride in its last axis");
  if (a.strides(0) % item || a.strides(1) % item)
    throw py::value_error(std::string(name) + " has strides between elements");
  return {static_cast<const T*>(a.data()), a.strides(0) / item, a.strides(1) / item};
}
template <class T>
Rows<T> mutable_rows(py::array& a, Index steps, Index batch, Index width, const char* name) {
  const Rows<const T> r = rows<T>(a, steps, batch, width, name);
  return {static_cast<T*>(a.mutable_data()), r.time_stride, r.batch_stride};
}

inline bool is_tokens(const py::array& a) { return py::isinstance<py::array_t<std::int64_t>>(a); }

// Parameters or gradients: contiguous arrays of the network's dtype with as many elements as there should be.
template <class T>
std::vector<const T*> pointers(const py::sequence& arrays, const std::vector<Index>& sizes,
                               const char* name) {
  if (arrays.size() != sizes.size()) {
    throw py::value_error(std::string(name) + " has " + std::to_string(arrays.size()) + " arrays; expected " +
                          std::to_string(sizes.size()));
  }
  std::vector<const T*> all;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const py::array a = py::cast<py::array>(arrays[i]);
    if (!py::isinstance<py::array_t<T>>(a))
      throw py::type_error(std::string(name) + " have another dtype than the network");
    if (a.size() != sizes[i] || !(a.flags() & py::array::c_style)) {
      throw py::value_error(std::string(name) + "[" + std::to_string(i) + "] has shape " + shape_text(a) +
                            "; expected " + std::to_string(sizes[i]) + " contiguous elements");
    }
    all.push_back(static_cast<const T*>(a.data()));
  }
  return all;
}
template <class T>
std::vector<T*> mutable_pointers(const py::sequence& arrays, const std::vector<Index>& sizes,
                                 const char* name) {
  pointers<T>(arrays, sizes, name);
  std::vector<T*> all;
  for (const py::handle& a : arrays) all.push_back(static_cast<T*>(py::cast<py::array>(a).mutable_data()));
  return all;
}

}  // namespace fastrnn::bind
