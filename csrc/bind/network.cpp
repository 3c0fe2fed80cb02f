// Network and Weights.
#include <pybind11/stl.h>

#include <optional>

#include "bind/arrays.h"
#include "bind/options.h"
#include "bind/register.h"

namespace fastrnn::bind {
namespace {

PyWeights choose_weights(const PyNetwork& n, const std::optional<std::string>& quantized) {
  PyWeights w{n, {}};
  if (!quantized) {
    if (n.is_double) {
      w.weights = std::make_shared<Weights<double>>(n.network);
    } else {
      w.weights = std::make_shared<Weights<float>>(n.network);
    }
  } else if (n.is_double) {
    throw py::value_error("float64 networks are not quantised");
  } else if (choose<bool>(*quantized, "quantized", {{"int8", true}, {"bfloat16", false}})) {
    w.weights = std::make_shared<Weights<std::int8_t>>(n.network);
  } else {
    w.weights = std::make_shared<Weights<bfloat16_t>>(n.network);
  }
  return w;
}

}  // namespace

void register_network(py::module_& m) {
  py::class_<PyNetwork>(m, "Network")
      .def(py::init([](const std::string& cell, const std::string& dtype, Index input_size, Index hidden_size,
                       Index num_layers, bool bidirectional, bool bias, Index proj_size,
                       const std::string& peephole, bool reset_after, const std::string& nonlinearity,
                       double dropout, double recurrent_dropout, double zoneout_h, double zoneout_c) {
             return PyNetwork{make_network(cell, input_size, hidden_size, num_layers, bidirectional, bias,
                                           proj_size, peephole, reset_after, nonlinearity, dropout,
                                           recurrent_dropout, zoneout_h, zoneout_c),
                              choose<bool>(dtype, "dtype", {{"float32", false}, {"float64", true}})};
           }),
           py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("num_layers"), py::arg("bidirectional"), py::arg("bias"), py::arg("proj_size"),
           py::arg("peephole"), py::arg("reset_after"), py::arg("nonlinearity"), py::arg("dropout"),
           py::arg("recurrent_dropout"), py::arg("zoneout_h"), py::arg("zoneout_c"))
      .def(
          "explain",
          [](const PyNetwork& n, Index steps, Index batch, bool training, bool tokens, Index checkpoint,
             const std::optional<std::string>& quantized) {
            return std::visit(
                [&](auto made) {
                  using W = typename decltype(made)::element_type::Weight;
                  return explain<W>(n.network, steps, batch, training, tokens, checkpoint);
                },
                choose_weights(n, quantized).weights);
          },
          py::arg("steps"), py::arg("batch"), py::arg("training"), py::arg("tokens"),
          py::arg("checkpoint") = 0, py::arg("quantized") = py::none());

  py::class_<PyWeights>(m, "Weights")
      .def(py::init(&choose_weights), py::arg("network"), py::arg("quantized") = py::none())
      .def(
          "pack",
          [](PyWeights& w, const py::sequence& parameters) {
            std::visit(
                [&](auto& weights) {
                  using W = typename std::decay_t<decltype(*weights)>::Weight;
                  const ArrayList<const Compute<W>> from(parameters, w.network.network.parameter_sizes(),
                                                         "parameters");
                  const Unlocked unlocked;
                  weights->pack(from.pointers);
                },
                w.weights);
          },
          py::arg("parameters"))
      // Two overloads and no defaults, which would cost each call of the first 0.5 us, half of its time.
      .def(
          "run_plain",
          [](PyWeights& w, const py::tuple& layouts, const py::handle& x, const py::handle& state) {
            return run_plain(w, layouts, x, state, nullptr, false, py::none());
          },
          py::arg("layouts"), py::arg("x"), py::arg("state"))
      .def("run_plain", &run_plain, py::arg("layouts"), py::arg("x"), py::arg("state"), py::arg("reserve"),
           py::arg("tensors"), py::arg("parameters"))
      .def_property_readonly("nbytes", [](const PyWeights& w) {
        return std::visit([](const auto& weights) { return weights->bytes(); }, w.weights);
      });
}

}  // namespace fastrnn::bind
