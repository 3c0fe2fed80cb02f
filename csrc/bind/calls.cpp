// Reserve, forward and backward.
#include "bind/arrays.h"
#include "bind/register.h"

namespace fastrnn::bind {
namespace {

// What forward and backward are both given.
template <class T>
void read_inputs(Arguments<T>& args, const Network& n, const py::array& x, const py::object& h0,
                 const py::object& c0, const py::object& lengths, const py::object& reset, std::uint64_t seed,
                 std::uint64_t call) {
  if (x.ndim() < 2)
    throw py::value_error("x has shape " + shape_text(x) + "; expected (T, B, I), or (T, B) for tokens");
  const Index steps = args.steps = x.shape(0), batch = args.batch = x.shape(1);
  args.h0 = optional_pointer<T>(h0, {n.parts(), batch, n.first.recurrent()}, "h0");
  args.c0 = optional_pointer<T>(c0, {n.parts(), batch, n.first.hidden}, "c0");
  args.lengths = optional_pointer<Index>(lengths, {batch}, "lengths");
  if (args.lengths) {
    for (Index b = 0; b < batch; ++b) {
      if (args.lengths[b] < 0 || args.lengths[b] > steps)
        throw py::value_error("lengths must be from 0 to T");
    }
  }
  if (is_tokens(x)) {
    args.tokens = pointer<std::int64_t>(x, {steps, batch}, "x");
    // Past a row's length the kernels read no token, so any will do there.
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < (args.lengths ? args.lengths[b] : steps); ++t) {
        const std::int64_t token = args.tokens[t * batch + b];
        if (token < 0 || token >= n.first.input) throw py::value_error("x holds a token out of range");
      }
    }
  } else {
    args.x = rows<T>(x, steps, batch, n.first.input, "x");
  }
  args.reset = optional_bytes(reset, {steps, batch}, "reset");
  args.seed = seed;
  args.call = call;
}

template <class W>
void forward_as(const Weights<W>& weights, const py::array& x, const py::object& h0, const py::object& c0,
                const py::object& lengths, const py::object& reset, py::array& y, py::array& h_n,
                const py::object& c_n, PyReserve* reserve, std::uint64_t seed, std::uint64_t call) {
  using T = Compute<W>;
  const Network& n = weights.network();
  if (!weights.packed()) throw py::value_error("weights are not packed");
  ForwardArguments<T> args;
  read_inputs(args, n, x, h0, c0, lengths, reset, seed, call);
  args.y = mutable_rows<T>(y, args.steps, args.batch, n.output(), "y");
  args.h_n = mutable_pointer<T>(h_n, {n.parts(), args.batch, n.first.recurrent()}, "h_n");
  args.c_n = optional_mutable_pointer<T>(c_n, {n.parts(), args.batch, n.first.hidden}, "c_n");
  if (n.first.cell == Cell::lstm && !args.c_n) throw py::value_error("c_n is needed for an LSTM");
  const Unlocked unlocked;
  BorrowedScratch scratch;
  forward<W>(weights, args, reserve ? &reserve->of<T>() : nullptr, *scratch);
}

template <class T>
void backward_as(const Network& n, const py::sequence& parameters, const py::array& x, const py::object& h0,
                 const py::object& c0, const py::object& lengths, const py::object& reset, const py::array& y,
                 PyReserve& reserve, const py::object& dy, const py::object& dh_n, const py::object& dc_n,
                 const py::object& dx, py::array& dh0, const py::object& dc0, const py::sequence& gradients,
                 std::uint64_t seed, std::uint64_t call) {
  BackwardArguments<T> args;
  read_inputs(args, n, x, h0, c0, lengths, reset, seed, call);
  const Index steps = args.steps, batch = args.batch, width = n.output();
  const Reserve<T>& saved = reserve.of<T>();
  if (!saved.belongs_to(n, steps, batch)) throw py::value_error("reserve belongs to another call");
  const ArrayList<const T> parameter_list(parameters, n.parameter_sizes(), "parameters");
  const ArrayList<T> gradient_list(gradients, n.parameter_sizes(), "gradients");
  args.parameters = parameter_list.pointers;
  args.gradients = gradient_list.pointers;
  args.y = rows<T>(y, steps, batch, width, "y");
  if (!dy.is_none()) args.dy = rows<T>(as_array(dy, "dy"), steps, batch, width, "dy");
  args.dh_n = optional_pointer<T>(dh_n, {n.parts(), batch, n.first.recurrent()}, "dh_n");
  args.dc_n = optional_pointer<T>(dc_n, {n.parts(), batch, n.first.hidden}, "dc_n");
  if (!dx.is_none()) {
    if (args.tokens) throw py::value_error("dx must be None for tokens");
    py::array array = as_array(dx, "dx");
    args.dx = mutable_rows<T>(array, steps, batch, n.first.input, "dx");
  }
  args.dh0 = mutable_pointer<T>(dh0, {n.parts(), batch, n.first.recurrent()}, "dh0");
  args.dc0 = optional_mutable_pointer<T>(dc0, {n.parts(), batch, n.first.hidden}, "dc0");
  if (n.first.cell == Cell::lstm && !args.dc0) throw py::value_error("dc0 is needed for an LSTM");
  const Unlocked unlocked;
  BorrowedScratch scratch;
  backward<T>(n, args, saved, *scratch);
}

}  // namespace

void register_calls(py::module_& m) {
  py::class_<PyReserve>(m, "Reserve")
      .def(py::init<Index>(), py::arg("checkpoint") = 0)
      .def_property_readonly("nbytes", [](const PyReserve& r) { return r.single.bytes() + r.wide.bytes(); });

  m.def(
      "forward",
      [](const PyNetwork& n, const PyWeights& w, const py::array& x, const py::object& h0,
         const py::object& c0, const py::object& lengths, const py::object& reset, py::array y, py::array h_n,
         const py::object& c_n, PyReserve* reserve, std::uint64_t seed, std::uint64_t call) {
        check_same(n, w);
        std::visit(
            [&](const auto& weights) {
              forward_as(*weights, x, h0, c0, lengths, reset, y, h_n, c_n, reserve, seed, call);
            },
            w.weights);
      },
      py::arg("network"), py::arg("weights"), py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("lengths"),
      py::arg("reset"), py::arg("y"), py::arg("h_n"), py::arg("c_n"), py::arg("reserve"), py::arg("seed"),
      py::arg("call"));

  m.def(
      "backward",
      [](const PyNetwork& n, const py::sequence& parameters, const py::array& x, const py::object& h0,
         const py::object& c0, const py::object& lengths, const py::object& reset, const py::array& y,
         PyReserve& reserve, const py::object& dy, const py::object& dh_n, const py::object& dc_n,
         const py::object& dx, py::array dh0, const py::object& dc0, const py::sequence& gradients,
         std::uint64_t seed, std::uint64_t call) {
        const auto run = n.is_double ? &backward_as<double> : &backward_as<float>;
        run(n.network, parameters, x, h0, c0, lengths, reset, y, reserve, dy, dh_n, dc_n, dx, dh0, dc0,
            gradients, seed, call);
      },
      py::arg("network"), py::arg("parameters"), py::arg("x"), py::arg("h0"), py::arg("c0"),
      py::arg("lengths"), py::arg("reset"), py::arg("y"), py::arg("reserve"), py::arg("dy"), py::arg("dh_n"),
      py::arg("dc_n"), py::arg("dx"), py::arg("dh0"), py::arg("dc0"), py::arg("gradients"), py::arg("seed"),
      py::arg("call"));
}

}  // namespace fastrnn::bind
