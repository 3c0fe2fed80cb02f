// Stream.
#include "bind/arrays.h"
#include "bind/register.h"

namespace fastrnn::bind {
namespace {

// What a stream of either width can do.
struct PyStream {
  virtual ~PyStream() = default;
  virtual py::object step(const py::array& x, const py::object& rows) = 0;
  virtual py::object run_plain(const py::handle& x) = 0;
  virtual void run(const py::array& x, py::array out) = 0;
  virtual void enter() = 0;
  virtual void leave() = 0;

  py::object h, c, y;  // arrays over the stream's own memory, made once; c is None but for an LSTM
};

template <class W>
class StreamOf final : public PyStream {
 public:
  using T = Compute<W>;
  StreamOf(std::shared_ptr<const Weights<W>> weights, Index batch)
      : shared_(std::make_shared<Stream<W>>(std::move(weights), batch)), stream_(*shared_) {
    const Network& n = stream_.network();
    // What keeps an array's memory alive is the stream behind this object, not this object: no cycle.
    const py::capsule owner(new std::shared_ptr<Stream<W>>(shared_),
                            [](void* p) { delete static_cast<std::shared_ptr<Stream<W>>*>(p); });
    h = py::array_t<T>({n.layers, batch, n.first.recurrent()}, stream_.h(), owner);
    c = stream_.c() ? py::object(py::array_t<T>({n.layers, batch, n.first.hidden}, stream_.c(), owner))
                    : py::none();
    y = py::array_t<T>({batch, n.first.recurrent()}, stream_.y(), owner);
  }

  py::object step(const py::array& x, const py::object& row_list) override {
    const Network& n = stream_.network();
    const Index* indices = nullptr;
    Index count = stream_.batch();
    py::array row_array;
    if (!row_list.is_none()) {
      row_array = as_array(row_list, "rows");
      if (row_array.ndim() != 1)
        throw py::value_error("rows has shape " + shape_text(row_array) + "; expected (k,)");
      count = row_array.shape(0);
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
    step(values, tokens, indices, count);
    return indices ? y[py::slice(0, count, 1)] : y;
  }

  py::object run_plain(const py::handle& x) override {
    if (!is_plain<T>(x)) return py::none();
    const auto a = py::reinterpret_borrow<py::array>(x);
    if (a.ndim() != 2 || a.shape(0) != stream_.batch() || a.shape(1) != stream_.network().first.input)
      return py::none();
    step(static_cast<const T*>(a.data()), nullptr, nullptr, stream_.batch());
    return y;
  }

  void run(const py::array& x, py::array out) override {
    const Network& n = stream_.network();
    ForwardArguments<T> args;
    args.steps = x.ndim() ? x.shape(0) : 0;
    if (is_tokens(x)) {
      args.tokens = pointer<std::int64_t>(x, {args.steps, stream_.batch()}, "x");
      check_tokens(args.tokens, args.steps * stream_.batch());
    } else {
      args.x = rows<T>(x, args.steps, stream_.batch(), n.first.input, "x");
    }
    args.y = mutable_rows<T>(out, args.steps, stream_.batch(), n.output(), "y");
    const Unlocked unlocked(worth_unlocking(n, args.steps, stream_.batch()));
    stream_.run(args);
  }

  void enter() override { stream_.enter(); }
  void leave() override { stream_.leave(); }

 private:
  void step(const T* x, const std::int64_t* tokens, const Index* rows, Index count) {
    const Unlocked unlocked(worth_unlocking(stream_.network(), 1, count));
    stream_.step(x, tokens, rows, count);
  }

  void check_tokens(const std::int64_t* tokens, Index count) const {
    for (Index i = 0; i < count; ++i) {
      if (tokens[i] < 0 || tokens[i] >= stream_.network().first.input) {
        throw py::value_error("x holds token " + std::to_string(tokens[i]) + "; expected 0 to " +
                              std::to_string(stream_.network().first.input - 1));
      }
    }
  }

  const std::shared_ptr<Stream<W>> shared_;
  Stream<W>& stream_;
};

}  // namespace

void register_stream(py::module_& m) {
  py::class_<PyStream>(m, "Stream")
      .def(py::init([](const PyNetwork& n, const PyWeights& w, Index batch) -> std::unique_ptr<PyStream> {
             check_same(n, w);
             return std::visit(
                 [&](const auto& weights) -> std::unique_ptr<PyStream> {
                   using W = typename std::decay_t<decltype(*weights)>::Weight;
                   return std::make_unique<StreamOf<W>>(weights, batch);
                 },
                 w.weights);
           }),
           py::arg("network"), py::arg("weights"), py::arg("batch"))
      .def("step", &PyStream::step, py::arg("x"), py::arg("rows"))
      .def("run_plain", &PyStream::run_plain, py::arg("x"))
      .def("run", &PyStream::run, py::arg("x"), py::arg("y"))
      .def("__enter__", &PyStream::enter)
      .def("__exit__", [](PyStream& s, const py::args&) { s.leave(); })
      .def_readonly("h", &PyStream::h)
      .def_readonly("c", &PyStream::c);
}

}  // namespace fastrnn::bind
