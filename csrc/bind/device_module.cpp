// The Python module `_cuda`, and with the emulated runtime `_cuda_emulated`, which is for tests.  Its
// contract is python/fastrnn/_cuda.pyi.  Importing it calls no CUDA function: a process may still fork
// afterwards.
#include <pybind11/stl.h>

#include "bind/device_array.h"
#include "cuda/cublas.h"

namespace {

namespace py = pybind11;
namespace cuda = fastrnn::cuda;

void register_device(py::module_& m) {
  m.def("why_unavailable", &cuda::why_unavailable);
  m.def("device_count", &cuda::device_count);
  m.def(
      "device_info",
      [](int device) {
        const cuda::DeviceInfo& info = cuda::device_info(device);
        py::dict d;
        d["name"] = info.name;
        d["capability"] = py::make_tuple(info.limits.major, info.limits.minor);
        d["processors"] = info.limits.processors;
        d["memory"] = info.limits.memory;
        return d;
      },
      py::arg("device"));
  m.def("driver_version", &cuda::driver_version);
  m.def("runtime_version", &cuda::runtime_version);
  m.def("cublas", &cuda::describe_cublas);
  m.def("set_cublas_folders", &cuda::set_cublas_folders, py::arg("folders"));
  m.def("synchronous", &cuda::synchronous);
  m.def(
      "synchronize",
      [](int device, std::uintptr_t stream) {
        const cuda::DeviceScope scope(device);
        cuda::synchronize(fastrnn::bind::stream_of(stream));
      },
      py::arg("device"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(FRNN_DEVICE_MODULE, m) {
  m.doc() = "Compiled CUDA kernels of fastrnn.";
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const cuda::OutOfMemory& error) {
      PyErr_SetString(PyExc_MemoryError, error.what());
    }
  });
  register_device(m);
  fastrnn::bind::register_device_array(m);
  fastrnn::bind::register_device_calls(m);
}
