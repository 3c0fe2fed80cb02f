// Network and Weights.
#include <pybind11/stl.h>

#include "bind/arrays.h"
#include "bind/options.h"
#include "bind/register.h"

namespace fastrnn::bind {
void register_network(py::module_& m) {
  py::class_<PyNetwork>(m, "Network")
      .def(py::init([](const std::string& cell, const std::string& dtype, Index input_size, Index hidden_size,
                       Index num_layers, bool bidirectional, bool bias, Index proj_size,
                       const std::string& peephole, bool reset_after, const std::string& nonlinearity,
                       double dropout) {
             return PyNetwork{make_network(cell, input_size, hidden_size, num_layers, bidirectional, bias,
                                           proj_size, peephole, reset_after, nonlinearity, dropout),
                              choose<bool>(dtype, "dtype", {{"float32", false}, {"float64", true}})};
           }),
           py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("num_layers"), py::arg("bidirectional"), py::arg("bias"), py::arg("proj_size"),
           py::arg("peephole"), py::arg("reset_after"), py::arg("nonlinearity"), py::arg("dropout"))
      .def(
          "explain",
          [](const PyNetwork& n, Index steps, Index batch, bool training, bool tokens, Index checkpoint) {
            return explain(n.network, steps, batch, training, tokens, n.is_double, checkpoint);
          },
          py::arg("steps"), py::arg("batch"), py::arg("training"), py::arg("tokens"),
          py::arg("checkpoint") = 0);

  py::class_<PyWeights>(m, "Weights")
      .def(py::init([](const PyNetwork& n) {
             PyWeights w{n, {}};
             if (n.is_double) {
               w.weights = std::make_shared<Weights<double>>(n.network);
             } else {
               w.weights = std::make_shared<Weights<float>>(n.network);
             }
             return w;
           }),
           py::arg("network"))
      .def(
          "pack",
          [](PyWeights& w, const py::sequence& parameters) {
            std::visit(
                [&](auto& weights) {
                  using T =
                      std::conditional_t<std::is_same_v<decltype(weights), std::shared_ptr<Weights<double>>&>,
                                         double, float>;
                  const ArrayList<const T> from(parameters, w.network.network.parameter_sizes(),
                                                "parameters");
                  const Unlocked unlocked;
                  weights->pack(from.pointers);
                },
                w.weights);
          },
          py::arg("parameters"))
      .def_property_readonly("nbytes", [](const PyWeights& w) {
        return std::visit([](const auto& weights) { return weights->bytes(); }, w.weights);
      });
}

}  // namespace fastrnn::bind
