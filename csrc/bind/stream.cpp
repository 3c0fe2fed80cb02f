// Stream.
#include "bind/arrays.h"
#include "bind/register.h"

namespace fastrnn::bind {
namespace {

// What a stream of either width can do.
struct PyStream {
  virtual ~PyStream() = default;
  virtual py::array step(const py::handle& self, const py::array& x, const py::object& rows) = 0;
  virtual void run(const py::array& x, py::array y) = 0;
  virtual py::array h(const py::handle& self) = 0;
  virtual py::object c(const py::handle& self) = 0;
};

template <class T>
class StreamOf final : public PyStream {
 public:
  StreamOf(std::shared_ptr<const Weights<T>> weights, Index batch) : stream_(std::move(weights), batch) {}

  py::array step(const py::handle& self, const py::array& x, const py::object& row_list) override {
    const Network& n = stream_.network();
    const Index* indices = nullptr;
    Index count = stream_.batch();
    py::array row_array;
    if (!row_list.is_none()) {
      row_array = py::cast<py::array>(row_list);
      count = row_array.ndim() == 1 ? row_array.shape(0) : -1;
      indices = pointer<Index>(row_array, {count}, "rows");
    }
    const T* values = nullptr;
    const std::int64_t* tokens = nullptr;
    if (is_tokens(x)) {
      tokens = pointer<std::int64_t>(x, {count}, "x");
      check_tokens(tokens, count);
    } else {
      values = pointer<T>(x, {count, n.first.input}, "x");
    }
    {
      const py::gil_scoped_release unlocked;
      stream_.step(values, tokens, indices, count);
    }
    return view(self, stream_.y(), {count, n.first.recurrent()});
  }

  void run(const py::array& x, py::array y) override {
    const Network& n = stream_.network();
    ForwardArguments<T> args;
    args.steps = x.ndim() ? x.shape(0) : 0;
    if (is_tokens(x)) {
      args.tokens = pointer<std::int64_t>(x, {args.steps, stream_.batch()}, "x");
      check_tokens(args.tokens, args.steps * stream_.batch());
    } else {
      args.x = rows<T>(x, args.steps, stream_.batch(), n.first.input, "x");
    }
    args.y = mutable_rows<T>(y, args.steps, stream_.batch(), n.output(), "y");
    const py::gil_scoped_release unlocked;
    stream_.run(args);
  }

  py::array h(const py::handle& self) override {
    const Network& n = stream_.network();
    return view(self, stream_.h(), {n.layers, stream_.batch(), n.first.recurrent()});
  }
  py::object c(const py::handle& self) override {
    const Network& n = stream_.network();
    if (!stream_.c()) return py::none();
    return view(self, stream_.c(), {n.layers, stream_.batch(), n.first.hidden});
  }

 private:
  // An array over the stream's own memory, which keeps the stream alive.
  static py::array view(const py::handle& self, T* data, std::vector<py::ssize_t> shape) {
    return py::array_t<T>(std::move(shape), data, self);
  }
  void check_tokens(const std::int64_t* tokens, Index count) const {
    for (Index i = 0; i < count; ++i) {
      if (tokens[i] < 0 || tokens[i] >= stream_.network().first.input) {
        throw py::value_error("x holds token " + std::to_string(tokens[i]) + "; expected 0 to " +
                              std::to_string(stream_.network().first.input - 1));
      }
    }
  }

  Stream<T> stream_;
};

}  // namespace

void register_stream(py::module_& m) {
  py::class_<PyStream>(m, "Stream")
      .def(py::init([](const PyNetwork&, const PyWeights& w, Index batch) -> std::unique_ptr<PyStream> {
             if (const auto* single = std::get_if<std::shared_ptr<Weights<float>>>(&w.weights)) {
               return std::make_unique<StreamOf<float>>(*single, batch);
             }
             return std::make_unique<StreamOf<double>>(std::get<std::shared_ptr<Weights<double>>>(w.weights),
                                                       batch);
           }),
           py::arg("network"), py::arg("weights"), py::arg("batch"))
      .def(
          "step",
          [](const py::object& self, const py::array& x, const py::object& rows) {
            return self.cast<PyStream&>().step(self, x, rows);
          },
          py::arg("x"), py::arg("rows"))
      .def("run", &PyStream::run, py::arg("x"), py::arg("y"))
      .def_property_readonly("h", [](const py::object& self) { return self.cast<PyStream&>().h(self); })
      .def_property_readonly("c", [](const py::object& self) { return self.cast<PyStream&>().c(self); });
}

}  // namespace fastrnn::bind
