// The Python module `_core`.  Its contract is python/fastrnn/_core.pyi; here arrays become pointers and
// nothing is computed.  The interpreter lock is released around kernels that take more than a few
// microseconds.
#include <pybind11/pybind11.h>

#include "bind/arrays.h"
#include "bind/register.h"

#ifndef FRNN_VERSION
#define FRNN_VERSION "unknown"
#endif

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled CPU kernels of fastrnn.";
  m.attr("__version__") = FRNN_VERSION;
  fastrnn::bind::register_network(m);
  fastrnn::bind::register_calls(m);
  fastrnn::bind::register_stream(m);
  fastrnn::bind::register_tensors(m);
  fastrnn::bind::register_machine(m);
  fastrnn::bind::register_training(m);
}
