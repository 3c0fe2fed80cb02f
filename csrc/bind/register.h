// The parts of the module, and the Python classes they share.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <variant>

#include "ops/network.h"

namespace fastrnn::bind {

struct PyNetwork {
  Network network;
  bool is_double = false;
};

// One type for all: a stack has one dtype for life, a float32 one may have its weights quantised.
struct PyWeights {
  PyNetwork network;
  std::variant<std::shared_ptr<Weights<float>>, std::shared_ptr<Weights<double>>,
               std::shared_ptr<Weights<bfloat16_t>>, std::shared_ptr<Weights<std::int8_t>>>
      weights;
};

inline void check_same(const PyNetwork& n, const PyWeights& w) {
  if (n.is_double != w.network.is_double || !(n.network == w.network.network)) {
    throw pybind11::value_error("weights were made for another network");
  }
}

struct PyReserve {
  explicit PyReserve(Index checkpoint) : single(checkpoint), wide(checkpoint) {}
  Reserve<float> single;
  Reserve<double> wide;

  template <class T>
  Reserve<T>& of() {
    if constexpr (sizeof(T) == sizeof(float)) {
      return single;
    } else {
      return wide;
    }
  }
};

// Weights.run_plain: calls.cpp
pybind11::object run_plain(PyWeights& w, const pybind11::tuple& layouts, const pybind11::handle& x,
                           const pybind11::handle& state, PyReserve* reserve, bool tensors,
                           const pybind11::object& parameters);

void register_network(pybind11::module_& m);
void register_calls(pybind11::module_& m);
void register_stream(pybind11::module_& m);
void register_tensors(pybind11::module_& m);
void register_machine(pybind11::module_& m);
void register_training(pybind11::module_& m);

}  // namespace fastrnn::bind
