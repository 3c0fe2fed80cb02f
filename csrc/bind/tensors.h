// Tensors of a library that lets others read them without a call of Python: DLPack's table of functions
// (`__dlpack_c_exchange_api__`, from 1.2 on), which torch 2.10 and later hang on their type.
#pragma once

#include <pybind11/pybind11.h>

#include "bind/dlpack.h"
#include "core/types.h"

namespace fastrnn::bind {

// The type whose tensors are read, and how; one for the process.
struct TensorReader {
  PyTypeObject* type = nullptr;
  int (*read)(void* tensor, dlpack::Tensor* out) = nullptr;
};
extern TensorReader tensor_reader;

// True if the elements are on the CPU, of this type, aligned and one after the other, and there are any.
template <class T>
bool is_plain(const dlpack::Tensor& t) {
  const auto address = reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset;
  if (t.device.type != dlpack::kCpu || t.dtype.code != dlpack::kFloat || t.dtype.bits != 8 * sizeof(T) ||
      t.dtype.lanes != 1 || address == 0 || address % alignof(T) != 0)
    return false;
  std::int64_t stride = 1;
  for (int axis = t.ndim - 1; axis >= 0; --axis) {
    if (t.shape[axis] == 0) return false;
    if (t.shape[axis] > 1 && t.strides && t.strides[axis] != stride) return false;
    stride *= t.shape[axis];
  }
  return true;
}

}  // namespace fastrnn::bind
