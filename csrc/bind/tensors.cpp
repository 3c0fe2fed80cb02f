// Which library's tensors are read in place, and what tells one memory and layout from another.
#include "bind/tensors.h"

#include <cstring>
#include <string>

#include "bind/register.h"

namespace fastrnn::bind {

namespace py = pybind11;

TensorReader tensor_reader;

namespace {

// True if tensors of this type can be read from now on.
bool read_tensors(const py::type& type) {
  if (!py::hasattr(type, dlpack::Exchange::kAttribute)) return false;
  const py::object capsule = type.attr(dlpack::Exchange::kAttribute);
  const auto* table =
      static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::Exchange::kName));
  if (!table) throw py::error_already_set();
  if (table->major != 1 || !table->read) return false;
  tensor_reader = {reinterpret_cast<PyTypeObject*>(py::object(type).release().ptr()), table->read};
  return true;
}

// Address, type, shape and strides of each, in one row of bytes: equal only if all of them are.
py::bytes layouts_of(const py::sequence& tensors) {
  std::string found;
  const auto append = [&](const auto* values, std::size_t count) {
    found.append(reinterpret_cast<const char*>(values), count * sizeof(*values));
  };
  for (const py::handle tensor : tensors) {
    if (!tensor_reader.read || !PyObject_TypeCheck(tensor.ptr(), tensor_reader.type)) {
      throw py::type_error("one of the tensors has type " +
                           std::string(py::str(py::type::of(tensor).attr("__name__"))));
    }
    dlpack::Tensor t{};
    if (tensor_reader.read(tensor.ptr(), &t) != 0) throw py::error_already_set();
    const std::uint64_t head[] = {reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset,
                                  static_cast<std::uint64_t>(t.ndim), t.dtype.code, t.dtype.bits};
    append(head, 4);
    append(t.shape, static_cast<std::size_t>(t.ndim));
    append(t.strides, static_cast<std::size_t>(t.ndim));
  }
  return py::bytes(found);
}

}  // namespace

void register_tensors(py::module_& m) {
  m.def("read_tensors", &read_tensors, py::arg("type"));
  m.def("layouts_of", &layouts_of, py::arg("tensors"));
}

}  // namespace fastrnn::bind
