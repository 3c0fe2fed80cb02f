// Reserve, forward and backward, and calls of plain arguments in one go.
#include <pybind11/stl.h>

#include <optional>
#include <string_view>

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
        throw py::value_error("lengths[" + std::to_string(b) + "] is " + std::to_string(args.lengths[b]) +
                              "; expected from 0 to T = " + std::to_string(steps));
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
  const Unlocked unlocked(worth_unlocking(n, args.steps, args.batch));
  BorrowedScratch scratch;
  forward<W>(weights, args, reserve ? &reserve->of<T>() : nullptr, *scratch);
}

// A shape of up to three axes.
struct Shape {
  Index sizes[3] = {};
  int axes = 0;

  void append(Index size) { sizes[axes++] = size; }
  bool is(const Index* others, int count) const {
    return count == axes && std::equal(sizes, sizes + axes, others);
  }
};

// The layout with so many axes before the features; empty-handed if there is none.
std::optional<std::string_view> layout_with(int axes, const py::tuple& layouts) {
  for (const py::handle& layout : layouts) {
    Py_ssize_t size = 0;
    const char* letters = PyUnicode_AsUTF8AndSize(layout.ptr(), &size);
    if (!letters) throw py::error_already_set();
    if (size == axes) return std::string_view(letters, static_cast<std::size_t>(size));
  }
  return std::nullopt;
}

// A call without lengths, resets and masks.  What it does not know as plain it leaves to Python's checks,
// and to their messages.  These take some 5 us, several times as long as the kernels of one small step.
template <class T>
struct PlainCall {
  bool tensors;  // may be among the arguments
  Index steps = 0, batch = 0;
  bool has_time = false, batch_first = false;
  Shape x_shape, y_shape, h_shape, c_shape;
  const T *x = nullptr, *h0 = nullptr, *c0 = nullptr;

  explicit PlainCall(bool with_tensors) : tensors(with_tensors) {}

  // False if it is not plain.
  bool read(const Network& n, const py::tuple& layouts, const py::handle& given, const py::handle& state) {
    View<T> input;
    if (!input.of(given, tensors)) return false;
    const int axes = input.axes - 1;
    const auto layout = layout_with(axes, layouts);
    if (!layout || axes > 2 || input.sizes[axes] != n.first.input) return false;
    const std::size_t time = layout->find('T'), row = layout->find('B'), none = std::string_view::npos;
    has_time = time != none;
    batch_first = *layout == "BT";
    if (!has_time && n.parts() != 1) return false;  // a cell has one state
    steps = has_time ? input.sizes[time] : 1;
    batch = row == none ? 1 : input.sizes[row];
    if (steps == 0) return false;
    x = input.data;
    for (int axis = 0; axis < axes; ++axis) x_shape.append(input.sizes[axis]);
    y_shape = x_shape;
    x_shape.append(n.first.input);
    y_shape.append(n.output());
    const auto state_shape = [&](Index width) {
      Shape shape;
      if (has_time) shape.append(n.parts());
      if (row != none) shape.append(batch);
      shape.append(width);
      return shape;
    };
    h_shape = state_shape(n.first.recurrent());
    c_shape = state_shape(n.first.hidden);
    return state.is_none() || read_state(n, state, h0, c0);
  }

  // Of the state or of gradients in it: h, of an LSTM (h, c).
  bool read_state(const Network& n, const py::handle& state, const T*& h, const T*& c) const {
    if (n.first.cell != Cell::lstm) return read_array(state, h_shape, h);
    return PyTuple_CheckExact(state.ptr()) && PyTuple_GET_SIZE(state.ptr()) == 2 &&
           read_array(PyTuple_GET_ITEM(state.ptr(), 0), h_shape, h) &&
           read_array(PyTuple_GET_ITEM(state.ptr(), 1), c_shape, c);
  }

  bool read_array(const py::handle& value, const Shape& shape, const T*& data) const {
    View<T> found;
    if (!found.of(value, tensors)) return false;
    data = found.data;
    return shape.is(found.sizes, found.axes);
  }

  template <class U>
  Rows<U> rows_of(U* data, Index width) const {
    return {data, batch_first ? width : batch * width, batch_first ? steps * width : width};
  }
};

template <class T>
py::array make(const Shape& shape) {
  return empty(py::dtype::of<T>(), shape.sizes, shape.axes);
}

template <class W>
py::object run_plain_as(Weights<W>& weights, const py::tuple& layouts, const py::handle& x,
                        const py::handle& state, PyReserve* reserve, bool tensors,
                        const py::object& parameters) {
  using T = Compute<W>;
  const Network& n = weights.network();
  PlainCall<T> call(tensors);
  if (!call.read(n, layouts, x, state)) return py::none();
  std::optional<ArrayList<const T>> repacked;
  if (!parameters.is_none()) {
    repacked.emplace(py::reinterpret_borrow<py::sequence>(parameters), n.parameter_sizes(), "parameters");
  } else if (!weights.packed()) {
    return py::none();
  }
  ForwardArguments<T> args;
  args.steps = call.steps;
  args.batch = call.batch;
  args.h0 = call.h0;
  args.c0 = call.c0;
  py::array h_n = make<T>(call.h_shape), y = h_n;  // a cell's y is its h_n
  if (call.has_time) y = make<T>(call.y_shape);
  args.h_n = static_cast<T*>(h_n.mutable_data());
  py::object state_n = h_n;
  if (n.first.cell == Cell::lstm) {
    py::array c_n = make<T>(call.c_shape);
    args.c_n = static_cast<T*>(c_n.mutable_data());
    state_n = py::make_tuple(std::move(h_n), std::move(c_n));
  }
  args.x = call.rows_of(call.x, n.first.input);
  args.y = call.rows_of(static_cast<T*>(y.mutable_data()), n.output());
  {
    const Unlocked unlocked(worth_unlocking(n, args.steps, args.batch, repacked ? kPackingRows : 0));
    if (repacked) weights.pack(repacked->pointers);
    BorrowedScratch scratch;
    forward<W>(weights, args, reserve ? &reserve->of<T>() : nullptr, *scratch);
  }
  return call.has_time ? py::make_tuple(std::move(y), std::move(state_n)) : state_n;
}

template <class T>
void backward_as(const Network& n, const py::sequence& parameters, const py::array& x, const py::object& h0,
                 const py::object& c0, const py::object& lengths, const py::object& reset, const py::array& y,
                 PyReserve& reserve, const py::object& dy, const py::object& dh_n, const py::object& dc_n,
                 const py::object& dx, py::array& dh0, const py::object& dc0, const py::sequence& gradients,
                 bool add, std::uint64_t seed, std::uint64_t call) {
  BackwardArguments<T> args;
  read_inputs(args, n, x, h0, c0, lengths, reset, seed, call);
  const Index steps = args.steps, batch = args.batch, width = n.output();
  const Reserve<T>& saved = reserve.of<T>();
  if (!saved.belongs_to(n, steps, batch)) throw py::value_error("reserve belongs to another call");
  const ArrayList<const T> parameter_list(parameters, n.parameter_sizes(), "parameters");
  const ArrayList<T> gradient_list(gradients, n.parameter_sizes(), "gradients");
  args.parameters = parameter_list.pointers;
  args.gradients = gradient_list.pointers;
  args.add = add;
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

// Backward of such a call.
template <class T>
py::object backward_plain_as(const Network& n, const py::sequence& parameters, const py::tuple& layouts,
                             const py::handle& x, const py::handle& state, const py::handle& y,
                             PyReserve& reserve, const py::handle& dy, const py::handle& dh_n,
                             const py::handle& dc_n, bool need_dx, const py::object& gradients) {
  PlainCall<T> call(gradients.is_none());  // a layer's checks refuse tensors that require grad
  if (!call.read(n, layouts, x, state)) return py::none();
  const auto part = [&](const py::handle& value, const Shape& shape, const T*& data) {
    return value.is_none() || call.read_array(value, shape, data);
  };
  BackwardArguments<T> args;
  const T *outputs = nullptr, *d_outputs = nullptr;
  const bool plain = call.read_array(y, call.y_shape, outputs) && part(dy, call.y_shape, d_outputs) &&
                     part(dh_n, call.h_shape, args.dh_n) && part(dc_n, call.c_shape, args.dc_n);
  if (!plain) return py::none();
  const Reserve<T>& saved = reserve.of<T>();
  if (!saved.belongs_to(n, call.steps, call.batch)) throw py::value_error("reserve belongs to another call");
  const ArrayList<const T> parameter_list(parameters, n.parameter_sizes(), "parameters");
  std::optional<ArrayList<T>> totals;
  py::object sums = gradients;
  if (!gradients.is_none()) {
    totals.emplace(py::reinterpret_borrow<py::sequence>(gradients), n.parameter_sizes(), "gradients");
    args.gradients = totals->pointers;
    args.add = true;
  } else {
    py::list made(parameter_list.held.size());
    for (std::size_t i = 0; i < parameter_list.held.size(); ++i) {
      View<T> like;
      if (!like.of(parameter_list.held[i], true)) return py::none();
      py::array sum = empty(py::dtype::of<T>(), like.sizes, like.axes);
      args.gradients.push_back(static_cast<T*>(sum.mutable_data()));
      made[i] = std::move(sum);
    }
    sums = std::move(made);
  }
  args.parameters = parameter_list.pointers;
  args.steps = call.steps;
  args.batch = call.batch;
  args.x = call.rows_of(call.x, n.first.input);
  args.h0 = call.h0;
  args.c0 = call.c0;
  args.y = call.rows_of(outputs, n.output());
  if (d_outputs) args.dy = call.rows_of(d_outputs, n.output());
  py::object dx = py::none(), dc0 = py::none();
  if (need_dx) {
    py::array made = make<T>(call.x_shape);
    args.dx = call.rows_of(static_cast<T*>(made.mutable_data()), n.first.input);
    dx = std::move(made);
  }
  py::array dh0 = make<T>(call.h_shape);
  args.dh0 = static_cast<T*>(dh0.mutable_data());
  if (n.first.cell == Cell::lstm) {
    py::array made = make<T>(call.c_shape);
    args.dc0 = static_cast<T*>(made.mutable_data());
    dc0 = std::move(made);
  }
  {
    const Unlocked unlocked(worth_unlocking(n, args.steps, args.batch, kPackingRows));
    BorrowedScratch scratch;
    backward<T>(n, args, saved, *scratch);
  }
  return py::make_tuple(std::move(dx), std::move(dh0), std::move(dc0), std::move(sums));
}

}  // namespace

py::object run_plain(PyWeights& w, const py::tuple& layouts, const py::handle& x, const py::handle& state,
                     PyReserve* reserve, bool tensors, const py::object& parameters) {
  return std::visit(
      [&](auto& weights) { return run_plain_as(*weights, layouts, x, state, reserve, tensors, parameters); },
      w.weights);
}

void register_calls(py::module_& m) {
  py::class_<PyReserve>(m, "Reserve")
      .def(py::init<Index>(), py::arg("checkpoint") = 0)
      .def_property_readonly("nbytes", [](const PyReserve& r) { return r.single.bytes() + r.wide.bytes(); });

  m.def(
      "empty",
      [](const std::vector<Index>& shape, const py::dtype& dtype) {
        return empty(dtype, shape.data(), static_cast<int>(shape.size()));
      },
      py::arg("shape"), py::arg("dtype"));

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
         const py::object& dx, py::array dh0, const py::object& dc0, const py::sequence& gradients, bool add,
         std::uint64_t seed, std::uint64_t call) {
        const auto run = n.is_double ? &backward_as<double> : &backward_as<float>;
        run(n.network, parameters, x, h0, c0, lengths, reset, y, reserve, dy, dh_n, dc_n, dx, dh0, dc0,
            gradients, add, seed, call);
      },
      py::arg("network"), py::arg("parameters"), py::arg("x"), py::arg("h0"), py::arg("c0"),
      py::arg("lengths"), py::arg("reset"), py::arg("y"), py::arg("reserve"), py::arg("dy"), py::arg("dh_n"),
      py::arg("dc_n"), py::arg("dx"), py::arg("dh0"), py::arg("dc0"), py::arg("gradients"), py::arg("add"),
      py::arg("seed"), py::arg("call"));

  m.def(
      "backward_plain",
      [](const PyNetwork& n, const py::sequence& parameters, const py::tuple& layouts, const py::handle& x,
         const py::handle& state, const py::handle& y, PyReserve& reserve, const py::handle& dy,
         const py::handle& dh_n, const py::handle& dc_n, bool need_dx, const py::object& gradients) {
        const auto run = n.is_double ? &backward_plain_as<double> : &backward_plain_as<float>;
        return run(n.network, parameters, layouts, x, state, y, reserve, dy, dh_n, dc_n, need_dx, gradients);
      },
      py::arg("network"), py::arg("parameters"), py::arg("layouts"), py::arg("x"), py::arg("state"),
      py::arg("y"), py::arg("reserve"), py::arg("dy"), py::arg("dh_n"), py::arg("dc_n"), py::arg("need_dx"),
      py::arg("gradients"));
}

}  // namespace fastrnn::bind
