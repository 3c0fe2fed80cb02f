// Networks on a device: weights, reserve, forward, backward, streams.  What _core has for the CPU, with
// device arrays in place of NumPy's.
#include <pybind11/stl.h>

#include <atomic>
#include <mutex>
#include <utility>
#include <variant>

#include "bind/arrays.h"
#include "bind/device_array.h"
#include "bind/optimizer_numbers.h"
#include "bind/options.h"
#include "cuda/arrays.h"
#include "cuda/gemm.h"
#include "cuda/stack.h"

namespace fastrnn::bind {
namespace {

using cuda::DeviceScope;
using cuda::Reserve;
using cuda::Streams;

// How products of float32 are computed, in all calls of this process.
std::atomic<cuda::Products> float32_products{cuda::Products::automatic};

// What a measurement insists on in all calls of this process.
std::mutex wish_mutex;
cuda::Wish forward_wish, backward_wish;

cuda::Wish wish_of(bool backward) {
  const std::lock_guard<std::mutex> lock(wish_mutex);
  return backward ? backward_wish : forward_wish;
}

cuda::Options forward_options(std::uint64_t* calls = nullptr) {
  return {float32_products, calls, wish_of(false)};
}

struct DeviceNetwork {
  Network network;
  DType dtype = DType::float32;
  int device = 0;
};

cuda::Request request_for(const DeviceNetwork& n, Index steps, Index batch, bool training, bool tokens) {
  cuda::Request request;
  request.network = n.network;
  request.steps = steps;
  request.batch = batch;
  request.dtype = n.dtype;
  request.training = training;
  request.tokens = tokens;
  request.products = float32_products;
  request.wish = wish_of(false);
  request.backward_wish = wish_of(true);
  return request;
}

// Calls body with a value of the C++ type of a dtype.
template <class Body>
auto with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::float64: return body(double{});
    case DType::float16: return body(half_t{});
    case DType::bfloat16: return body(bfloat16_t{});
    default: return body(float{});
  }
}

// ---- arrays to pointers, for work on one device and stream

class Work {
 public:
  Work(const DeviceNetwork& n, cuda::Stream stream) : device_(n.device), stream_(stream), scope_(n.device) {}

  cuda::Stream stream() const { return stream_; }

  // Memory of an array that the work reads or, if it is not const, writes.
  template <class T>
  const T* pointer(const DeviceArray& a, const std::vector<Index>& shape, const char* name) const {
    take<T>(a, shape, name);
    if (!a.contiguous()) throw py::value_error(std::string(name) + " must be C-contiguous");
    return reinterpret_cast<const T*>(a.data);
  }
  template <class T>
  T* mutable_pointer(const DeviceArray& a, const std::vector<Index>& shape, const char* name) const {
    pointer<T>(a, shape, name);
    check_writeable(a, name);
    return reinterpret_cast<T*>(a.data);
  }
  template <class T>
  Rows<const T> rows(const DeviceArray& a, const std::vector<Index>& shape, const char* name) const {
    take<T>(a, shape, name);
    if (a.size() == 0) return {reinterpret_cast<const T*>(a.data), 0, 0};
    if (shape[2] > 1 && a.strides[2] != 1)
      throw py::value_error(std::string(name) + " must have unit stride in its last axis");
    return {reinterpret_cast<const T*>(a.data), a.strides[0], a.strides[1]};
  }
  template <class T>
  Rows<T> mutable_rows(const DeviceArray& a, const std::vector<Index>& shape, const char* name) const {
    const Rows<const T> r = rows<T>(a, shape, name);
    check_writeable(a, name);
    return {reinterpret_cast<T*>(a.data), r.time_stride, r.batch_stride};
  }

 private:
  template <class T>
  void take(const DeviceArray& a, const std::vector<Index>& shape, const char* name) const {
    if (!(a.type == element_type<T>()))
      throw py::type_error(std::string(name) + " is " + a.type.name() + "; expected " +
                           element_type<T>().name());
    if (a.shape != shape) {
      throw py::value_error(std::string(name) + " has shape " + shape_text(a.shape) + "; expected " +
                            shape_text(shape));
    }
    if (a.device() != device_) {
      throw py::value_error(std::string(name) + " is on cuda:" + std::to_string(a.device()) +
                            "; expected cuda:" + std::to_string(device_));
    }
    if (!a.aligned()) throw py::value_error(std::string(name) + " must be aligned");
    a.storage->follow(stream_);
  }
  static void check_writeable(const DeviceArray& a, const char* name) {
    if (!a.writeable) throw py::value_error(std::string(name) + " is read-only");
  }

  int device_;
  cuda::Stream stream_;
  DeviceScope scope_;
};

using Optional = std::optional<DeviceArray>;  // None

// Parameters (const T) or gradients (T), in the order of Network::parameter_sizes.
template <class T>
std::vector<T*> pointers(const Work& work, const std::vector<DeviceArray>& arrays, const Network& n,
                         const char* name) {
  const std::vector<Index> sizes = n.parameter_sizes();
  if (arrays.size() != sizes.size()) {
    throw py::value_error(std::string(name) + " has " + std::to_string(arrays.size()) + " arrays; expected " +
                          std::to_string(sizes.size()));
  }
  std::vector<T*> list;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::string label = std::string(name) + "[" + std::to_string(i) + "]";
    const DeviceArray& a = arrays[i];
    if (a.size() != sizes[i])
      throw py::value_error(label + " has shape " + shape_text(a.shape) + "; expected " +
                            std::to_string(sizes[i]) + " elements");
    using Value = std::remove_const_t<T>;
    if constexpr (std::is_const_v<T>) {
      list.push_back(work.pointer<Value>(a, a.shape, label.c_str()));
    } else {
      list.push_back(work.mutable_pointer<Value>(a, a.shape, label.c_str()));
    }
  }
  return list;
}

// Calls body; what the device refuses is reported with the size of the call.
template <class Body>
void run_sized(const char* what, const Network& n, Index steps, Index batch, Body body) {
  const auto described = [&](const std::exception& error) {
    return std::string(error.what()) + " in " + what + " (T=" + std::to_string(steps) +
           ", B=" + std::to_string(batch) + ", I=" + std::to_string(n.first.input) +
           ", H=" + std::to_string(n.first.hidden) + ", layers=" + std::to_string(n.layers) + ")";
  };
  const Unlocked unlocked;
  try {
    body();
  } catch (const cuda::OutOfMemory& error) {
    throw cuda::OutOfMemory(described(error));
  } catch (const cuda::Error& error) {
    throw cuda::Error(described(error));
  }
}

// ---- weights and reserve

// Refers to the arrays: kernels read parameters where they lie.
struct DeviceWeights {
  DeviceNetwork network;
  std::vector<DeviceArray> arrays;

  void pack(std::vector<DeviceArray> parameters) {
    const Work work(network, parameters.empty() ? cuda::Stream{} : parameters[0].stream());
    with_type(network.dtype, [&](auto zero) {
      return pointers<const decltype(zero)>(work, parameters, network.network, "parameters").size();
    });
    arrays = std::move(parameters);
  }
  Index bytes() const {
    Index sum = 0;
    for (const DeviceArray& a : arrays) sum += a.size() * a.type.bytes();
    return sum;
  }
};

class DeviceReserve {
 public:
  // For a forward on this stream, and for a backward.
  template <class T>
  Reserve<T>& fill(int device, cuda::Stream stream) {
    order_.device = device;
    order_.follow(stream);
    order_.home = stream;
    return of<T>();
  }
  template <class T>
  const Reserve<T>& read(cuda::Stream stream) {
    order_.follow(stream);
    return of<T>();
  }
  std::size_t bytes() const {
    return std::visit([](const auto& saved) { return saved.bytes(); }, saved_);
  }

  // From now on every training forward with masks counts itself on the device, from 0.
  void count_calls(int device) {
    const DeviceScope scope(device);
    counter_ = DeviceArray::empty({1}, element_type<std::int64_t>(), {});
    cuda::set_bytes(counter_->data, 0, sizeof(std::uint64_t), {});
  }
  bool counting() const { return counter_.has_value(); }
  std::uint64_t* counter(cuda::Stream stream) {
    if (!counter_) return nullptr;
    counter_->storage->follow(stream);
    return reinterpret_cast<std::uint64_t*>(counter_->data);
  }
  std::uint64_t calls() const {
    std::uint64_t calls = 0;
    if (counter_) {
      const DeviceScope scope(counter_->device());
      const Unlocked unlocked;
      counter_->storage->wait_for_replays();
      cuda::copy_to_host(&calls, counter_->data, sizeof calls, counter_->stream());
    }
    return calls;
  }

 private:
  template <class T>
  Reserve<T>& of() {
    if (!std::holds_alternative<Reserve<T>>(saved_)) saved_.template emplace<Reserve<T>>();
    return std::get<Reserve<T>>(saved_);
  }

  std::variant<Reserve<float>, Reserve<double>, Reserve<half_t>, Reserve<bfloat16_t>> saved_;
  Storage order_;  // of the memory of saved_, and destroyed before it
  std::optional<DeviceArray> counter_;
};

// ---- forward and backward

// What forward and backward are both given.
struct Inputs {
  const DeviceArray& x;
  const Optional &h0, &c0, &lengths, &reset;
  std::uint64_t seed, call;
};
// What backward is given besides.
struct OutputGradients {
  const Optional &dy, &dh_n, &dc_n;
};
// What backward writes.
struct InputGradients {
  const Optional& dx;
  const DeviceArray& dh0;
  const Optional& dc0;
  const std::vector<DeviceArray>& parameters;
  bool add;  // to the parameters' gradients
};

template <class T>
void read_inputs(Arguments<T>& args, const Work& work, const Network& n, const Inputs& in) {
  const DeviceArray& x = in.x;
  if (x.ndim() < 2)
    throw py::value_error("x has shape " + shape_text(x.shape) +
                          "; expected (T, B, I), or (T, B) for tokens");
  const Index steps = args.steps = x.shape[0], batch = args.batch = x.shape[1];
  if (in.h0) args.h0 = work.pointer<T>(*in.h0, {n.parts(), batch, n.first.recurrent()}, "h0");
  if (in.c0) args.c0 = work.pointer<T>(*in.c0, {n.parts(), batch, n.first.hidden}, "c0");
  if (in.lengths) args.lengths = work.pointer<Index>(*in.lengths, {batch}, "lengths");
  if (x.type == element_type<std::int64_t>()) {
    args.tokens = work.pointer<std::int64_t>(x, {steps, batch}, "x");
  } else {
    args.x = work.rows<T>(x, {steps, batch, n.first.input}, "x");
  }
  if (in.reset)
    args.reset =
        reinterpret_cast<const std::uint8_t*>(work.pointer<bool>(*in.reset, {steps, batch}, "reset"));
  args.seed = in.seed;
  args.call = in.call;
}

template <class T>
void forward_as(const DeviceNetwork& dn, const DeviceWeights& w, const Inputs& in, const DeviceArray& y,
                const DeviceArray& h_n, const Optional& c_n, DeviceReserve* reserve) {
  const Network& n = dn.network;
  const Work work(dn, in.x.stream());
  ForwardArguments<T> args;
  read_inputs(args, work, n, in);
  const std::vector<const T*> parameters = pointers<const T>(work, w.arrays, n, "parameters");
  args.y = work.mutable_rows<T>(y, {args.steps, args.batch, n.output()}, "y");
  args.h_n = work.mutable_pointer<T>(h_n, {n.parts(), args.batch, n.first.recurrent()}, "h_n");
  if (c_n) args.c_n = work.mutable_pointer<T>(*c_n, {n.parts(), args.batch, n.first.hidden}, "c_n");
  if (n.first.cell == Cell::lstm && !c_n) throw py::value_error("c_n is needed for an LSTM");
  Reserve<T>* saved = reserve ? &reserve->fill<T>(dn.device, work.stream()) : nullptr;
  const cuda::Options options = forward_options(reserve ? reserve->counter(work.stream()) : nullptr);
  run_sized("forward", n, args.steps, args.batch,
            [&] { cuda::forward<T>(work.stream(), n, parameters, args, saved, options); });
}

template <class T>
void backward_as(const DeviceNetwork& dn, const std::vector<DeviceArray>& parameters, const Inputs& in,
                 const DeviceArray& y, DeviceReserve& reserve, const OutputGradients& given,
                 const InputGradients& wanted) {
  const Network& n = dn.network;
  const Work work(dn, in.x.stream());
  BackwardArguments<T> args;
  read_inputs(args, work, n, in);
  const Index steps = args.steps, batch = args.batch;
  const std::vector<Index> h_shape{n.parts(), batch, n.first.recurrent()},
      c_shape{n.parts(), batch, n.first.hidden}, y_shape{steps, batch, n.output()};
  const Reserve<T>& saved = reserve.read<T>(work.stream());
  if (!saved.belongs_to(n, steps, batch)) throw py::value_error("reserve belongs to another call");
  args.parameters = pointers<const T>(work, parameters, n, "parameters");
  args.gradients = pointers<T>(work, wanted.parameters, n, "gradients");
  args.add = wanted.add;
  args.y = work.rows<T>(y, y_shape, "y");
  if (given.dy) args.dy = work.rows<T>(*given.dy, y_shape, "dy");
  if (given.dh_n) args.dh_n = work.pointer<T>(*given.dh_n, h_shape, "dh_n");
  if (given.dc_n) args.dc_n = work.pointer<T>(*given.dc_n, c_shape, "dc_n");
  if (wanted.dx) {
    if (args.tokens) throw py::value_error("dx must be None for tokens");
    args.dx = work.mutable_rows<T>(*wanted.dx, {steps, batch, n.first.input}, "dx");
  }
  args.dh0 = work.mutable_pointer<T>(wanted.dh0, h_shape, "dh0");
  if (wanted.dc0) args.dc0 = work.mutable_pointer<T>(*wanted.dc0, c_shape, "dc0");
  if (n.first.cell == Cell::lstm && !wanted.dc0) throw py::value_error("dc0 is needed for an LSTM");
  run_sized("backward", n, steps, batch, [&] {
    cuda::backward<T>(work.stream(), n, args, saved, {float32_products, nullptr, wish_of(true)});
  });
}

// ---- streams

// What a stream of any dtype can do.
struct DeviceStream {
  virtual ~DeviceStream() = default;
  virtual DeviceArray step(const DeviceArray& x, const Optional& rows) = 0;
  virtual void run(const DeviceArray& x, const DeviceArray& out) = 0;

  void enter() {
    if (busy.exchange(true, std::memory_order_acquire)) {
      throw std::runtime_error("this stream is in use by another thread; one thread at a time may use it");
    }
  }
  void leave() { busy.store(false, std::memory_order_release); }

  DeviceArray h, y;  // over the stream's own memory, made once
  Optional c;        // LSTM
  std::atomic<bool> busy{false};
};

struct Inside {
  explicit Inside(DeviceStream& entered) : stream(entered) { stream.enter(); }
  ~Inside() { stream.leave(); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

  DeviceStream& stream;
};

template <class T>
class DeviceStreamOf final : public DeviceStream {
 public:
  DeviceStreamOf(const DeviceNetwork& n, const DeviceWeights& w, Index batch)
      : network_(n), arrays_(w.arrays) {
    const Work work(n, arrays_[0].stream());
    streams_ = std::make_shared<Streams<T>>(work.stream(), n.network,
                                            pointers<const T>(work, arrays_, n.network, "parameters"), batch);
    const LayerShape& s = n.network.first;
    const auto over = [&](void* data, std::vector<Index> shape, ElementType type) {
      return DeviceArray::over(data, std::move(shape), type, n.device, work.stream(), streams_);
    };
    h = over(streams_->h(), {n.network.layers, batch, s.recurrent()}, element_type<T>());
    if (streams_->c())
      c = over(streams_->c(), {n.network.layers, batch, s.hidden}, element_type<Compute<T>>());
    y = over(streams_->y(), {batch, s.recurrent()}, element_type<T>());
    // One storage: whoever uses one of them is waited for by the next step.
    y.storage = h.storage;
    if (c) c->storage = h.storage;
  }

  DeviceArray step(const DeviceArray& x, const Optional& rows) override {
    const Inside inside(*this);
    const Work work(network_, x.stream());
    follow(work.stream());
    const Network& n = network_.network;
    const Index count = rows ? rows->size() : streams_->batch();
    const Index* indices = rows ? work.pointer<Index>(*rows, {count}, "rows") : nullptr;
    const T* values = nullptr;
    const std::int64_t* tokens = nullptr;
    if (x.type == element_type<std::int64_t>()) {
      tokens = work.pointer<std::int64_t>(x, {count}, "x");
    } else {
      values = work.pointer<T>(x, {count, n.first.input}, "x");
    }
    run_sized("step", n, 1, count,
              [&] { streams_->step(work.stream(), values, tokens, indices, count, forward_options()); });
    DeviceArray out = y;
    out.shape[0] = count;
    return out;
  }

  void run(const DeviceArray& x, const DeviceArray& out) override {
    const Inside inside(*this);
    const Work work(network_, x.stream());
    follow(work.stream());
    const Network& n = network_.network;
    ForwardArguments<T> args;
    args.steps = x.ndim() ? x.shape[0] : 0;
    args.batch = streams_->batch();
    if (x.type == element_type<std::int64_t>()) {
      args.tokens = work.pointer<std::int64_t>(x, {args.steps, args.batch}, "x");
    } else {
      args.x = work.rows<T>(x, {args.steps, args.batch, n.first.input}, "x");
    }
    args.y = work.mutable_rows<T>(out, {args.steps, args.batch, n.output()}, "y");
    run_sized("run", n, args.steps, args.batch,
              [&] { streams_->run(work.stream(), args, forward_options()); });
  }

 private:
  void follow(cuda::Stream stream) const {
    h.storage->follow(stream);
    for (const DeviceArray& a : arrays_) a.storage->follow(stream);
  }

  DeviceNetwork network_;
  std::vector<DeviceArray> arrays_;
  std::shared_ptr<Streams<T>> streams_;
};

// ---- arrays as a whole, for what trains networks

// One float array or several of the same size and device, contiguous, for work on a stream.
template <class Body>
auto over_arrays(std::uintptr_t handle, const std::vector<const DeviceArray*>& arrays, Body body) {
  const DeviceArray& first = *arrays.front();
  const DeviceScope scope(first.device());
  const cuda::Stream stream = stream_of(handle);
  for (const DeviceArray* a : arrays) {
    if (!a->contiguous() || a->size() != first.size() || a->device() != first.device())
      throw py::value_error("expected contiguous arrays of one size on one device");
    a->storage->follow(stream);
  }
  const DType dtype = choose<DType>(first.type.name(), "dtype", cuda::kDTypes);
  const Unlocked unlocked;
  return with_type(dtype, [&](auto zero) { return body(zero, stream, first.size()); });
}

// The memory of an array that should be of T, written or read.
template <class T>
T* values(const DeviceArray& a) {
  if (!(a.type == element_type<T>()))
    throw py::type_error("the array is " + a.type.name() + "; expected " + element_type<T>().name());
  return reinterpret_cast<T*>(a.data);
}

// What counts the steps of an optimizer, for work on a stream.
double* step_state(const DeviceArray& state, std::uintptr_t stream) {
  if (state.size() != cuda::kStepState || !state.contiguous())
    throw py::value_error("state has shape " + shape_text(state.shape) + "; expected (3,)");
  state.storage->follow(stream_of(stream));
  return values<double>(state);
}

// Before any is used: an array for each parameter, contiguous, of its shape, on this device, and of its dtype
// or, if `computed`, of the dtype that it is computed in.
void check_like(const std::string& name, const std::vector<const DeviceArray*>& arrays,
                const std::vector<const DeviceArray*>& parameters, int device, bool computed) {
  if (arrays.size() != parameters.size())
    throw py::value_error(name + " has " + std::to_string(arrays.size()) + " arrays; expected " +
                          std::to_string(parameters.size()));
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const DeviceArray &a = *arrays[i], &p = *parameters[i];
    const std::string label = name + "[" + std::to_string(i) + "]";
    const ElementType type = with_type(choose<DType>(p.type.name(), "dtype", cuda::kDTypes), [&](auto zero) {
      using T = decltype(zero);
      return computed ? element_type<Compute<T>>() : element_type<T>();
    });
    if (!(a.type == type)) throw py::type_error(label + " is " + a.type.name() + "; expected " + type.name());
    if (a.shape != p.shape)
      throw py::value_error(label + " has shape " + shape_text(a.shape) + "; expected " +
                            shape_text(p.shape));
    if (a.device() != device || p.device() != device)
      throw py::value_error(label + " is on cuda:" + std::to_string(a.device()) +
                            "; expected cuda:" + std::to_string(device));
    if (!a.contiguous() || !p.contiguous())
      throw py::value_error(label + " and its parameter must be C-contiguous");
  }
}

void register_updates(py::module_& m) {
  m.def(
      "clear_rows",
      [](const DeviceArray& array, const DeviceArray& rows) {
        if (array.ndim() != 3 || !array.contiguous() || rows.ndim() != 1 || !rows.contiguous() ||
            !(rows.type == element_type<Index>()) || rows.device() != array.device())
          throw py::value_error("expected a contiguous array of three axes, and int64 rows");
        const DeviceScope scope(array.device());
        rows.storage->follow(array.stream());
        cuda::clear_rows(array.stream(), array.type.bytes(), array.data, array.shape[0], array.shape[1],
                         array.shape[2], reinterpret_cast<const Index*>(rows.data), rows.shape[0]);
      },
      py::arg("array"), py::arg("rows"));
  m.def(
      "scale",
      [](const DeviceArray& array, double factor, std::uintptr_t stream_handle) {
        over_arrays(stream_handle, {&array}, [&](auto zero, cuda::Stream stream, Index count) {
          using T = decltype(zero);
          cuda::scale<T>(stream, count, values<T>(array), factor);
        });
      },
      py::arg("array"), py::arg("factor"), py::arg("stream"));
  m.def(
      "sum_of_squares",
      [](const DeviceArray& array, std::uintptr_t stream_handle) {
        return over_arrays(stream_handle, {&array}, [&](auto zero, cuda::Stream stream, Index count) {
          using T = decltype(zero);
          return cuda::sum_of_squares<T>(stream, count, values<T>(array));
        });
      },
      py::arg("array"), py::arg("stream"));
  m.def(
      "matmul",
      [](const DeviceArray& a, const DeviceArray& b, const DeviceArray& c, bool transpose_a, bool transpose_b,
         bool add, std::uintptr_t stream_handle) {
        const cuda::Stream stream = stream_of(stream_handle);
        const DeviceScope scope(c.device());
        for (const DeviceArray* x : {&a, &b, &c}) {
          if (x->ndim() != 2 || !x->contiguous() || x->device() != c.device() || !(x->type == c.type))
            throw py::value_error("expected contiguous matrices of one dtype on one device");
          x->storage->follow(stream);
        }
        cuda::Gemm product;
        product.rows = c.shape[0];
        product.columns = c.shape[1];
        product.depth = a.shape[transpose_a ? 0 : 1];
        product.a = {a.data, a.shape[1], transpose_a};
        product.b = {b.data, b.shape[1], transpose_b};
        product.c = c.data;
        product.c_stride = c.shape[1];
        product.add = add;
        product.dtype = choose<DType>(c.type.name(), "dtype", cuda::kDTypes);
        product.tf32 = float32_products.load() == cuda::Products::tf32;
        if (a.shape[transpose_a ? 1 : 0] != product.rows || b.shape[transpose_b ? 0 : 1] != product.columns ||
            b.shape[transpose_b ? 1 : 0] != product.depth)
          throw py::value_error("the shapes of the matrices do not agree");
        const Unlocked unlocked;
        cuda::gemm(stream, product);
      },
      py::arg("a"), py::arg("b"), py::arg("c"), py::arg("transpose_a"), py::arg("transpose_b"),
      py::arg("add"), py::arg("stream"));
  m.def(
      "softmax_cross_entropy",
      [](const DeviceArray& logits, const DeviceArray& targets, const DeviceArray& scored,
         const DeviceArray& gradient, double scale, std::uintptr_t stream_handle) {
        const Index width = logits.ndim() ? logits.shape.back() : 0, rows = targets.size();
        if (rows * width != logits.size() || scored.size() != rows)
          throw py::value_error("the shapes of logits, targets and scored do not agree");
        const DeviceScope scope(logits.device());
        for (const DeviceArray* x : {&targets, &scored}) x->storage->follow(stream_of(stream_handle));
        return over_arrays(stream_handle, {&logits, &gradient}, [&](auto zero, cuda::Stream stream, Index) {
          using T = decltype(zero);
          return cuda::softmax_cross_entropy<T>(
              stream, rows, width, values<T>(logits), values<Index>(targets),
              reinterpret_cast<const std::uint8_t*>(values<bool>(scored)), scale, values<T>(gradient));
        });
      },
      py::arg("logits"), py::arg("targets"), py::arg("scored"), py::arg("gradient"), py::arg("scale"),
      py::arg("stream"));
  m.def(
      "update",
      [](const std::string& rule_name, const std::vector<const DeviceArray*>& parameters,
         const std::vector<const DeviceArray*>& gradients,
         const std::vector<std::vector<const DeviceArray*>>& buffers, const py::dict& named,
         const DeviceArray& state, std::uintptr_t stream_handle) {
        const auto [rule, wanted] = rule_of(rule_name);
        if (buffers.size() != wanted) throw py::value_error("the rule takes another number of buffers");
        const StepNumbers step = step_numbers(named);
        check_like("gradients", gradients, parameters, state.device(), false);
        for (const auto& kept : buffers) check_like("buffers", kept, parameters, state.device(), true);

        const DeviceScope scope(state.device());
        double* steps = step_state(state, stream_handle);
        cuda::begin_step(stream_of(stream_handle), steps, step.learning_rate, step.bias1, step.bias2);
        for (std::size_t i = 0; i < parameters.size(); ++i) {
          const DeviceArray &p = *parameters[i], &g = *gradients[i];
          const DeviceArray &first = *buffers.front()[i], &last = *buffers.back()[i];
          over_arrays(stream_handle, {&p, &g, &first, &last},
                      [&, rule = rule](auto zero, cuda::Stream stream, Index count) {
                        using T = decltype(zero);
                        cuda::update<T>(stream, rule, count, values<T>(p), values<T>(g),
                                        values<Compute<T>>(first), values<Compute<T>>(last), step.update,
                                        steps);
                      });
        }
      },
      py::arg("rule"), py::arg("parameters"), py::arg("gradients"), py::arg("buffers"), py::arg("numbers"),
      py::arg("state"), py::arg("stream"));
}

}  // namespace

void register_device_calls(py::module_& m) {
  py::class_<DeviceNetwork>(m, "Network", py::module_local())
      .def(py::init([](const std::string& cell, const std::string& dtype, Index input_size, Index hidden_size,
                       Index num_layers, bool bidirectional, bool bias, Index proj_size,
                       const std::string& peephole, bool reset_after, const std::string& nonlinearity,
                       double dropout, double recurrent_dropout, double zoneout_h, double zoneout_c,
                       int device) {
             return DeviceNetwork{make_network(cell, input_size, hidden_size, num_layers, bidirectional, bias,
                                               proj_size, peephole, reset_after, nonlinearity, dropout,
                                               recurrent_dropout, zoneout_h, zoneout_c),
                                  choose<DType>(dtype, "dtype", cuda::kDTypes), device};
           }),
           py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("num_layers"), py::arg("bidirectional"), py::arg("bias"), py::arg("proj_size"),
           py::arg("peephole"), py::arg("reset_after"), py::arg("nonlinearity"), py::arg("dropout"),
           py::arg("recurrent_dropout"), py::arg("zoneout_h"), py::arg("zoneout_c"), py::arg("device"))
      .def(
          "explain",
          [](const DeviceNetwork& n, Index steps, Index batch, bool training, bool tokens) {
            const DeviceScope scope(n.device);
            return cuda::explain(request_for(n, steps, batch, training, tokens));
          },
          py::arg("steps"), py::arg("batch"), py::arg("training"), py::arg("tokens"))
      .def(
          "launches",
          [](const DeviceNetwork& n, Index steps, Index batch, bool backward) {
            const DeviceScope scope(n.device);
            py::list found;
            for (const auto& [launch, seconds] :
                 cuda::launches(request_for(n, steps, batch, backward, false), backward)) {
              py::dict one;
              one["strategy"] = cuda::name_of(launch.strategy(), cuda::kStrategies);
              one["ranks"] = launch.ranks;
              one["columns"] = launch.columns;
              one["tile"] = cuda::name_of(launch.tile, cuda::kTiles);
              one["estimate"] = seconds;
              found.append(one);
            }
            return found;
          },
          py::arg("steps"), py::arg("batch"), py::arg("backward"));

  py::class_<DeviceWeights>(m, "Weights", py::module_local())
      .def(py::init([](const DeviceNetwork& n) { return DeviceWeights{n, {}}; }), py::arg("network"))
      .def("pack", &DeviceWeights::pack, py::arg("parameters"))
      .def_property_readonly("nbytes", &DeviceWeights::bytes);

  py::class_<DeviceReserve>(m, "Reserve", py::module_local())
      .def(py::init<>())
      .def_property_readonly("nbytes", &DeviceReserve::bytes)
      .def("count_calls", &DeviceReserve::count_calls, py::arg("device"))
      .def_property_readonly("counting", &DeviceReserve::counting)
      .def_property_readonly("calls", &DeviceReserve::calls);

  m.def(
      "forward",
      [](const DeviceNetwork& n, const DeviceWeights& w, const DeviceArray& x, const Optional& h0,
         const Optional& c0, const Optional& lengths, const Optional& reset, const DeviceArray& y,
         const DeviceArray& h_n, const Optional& c_n, DeviceReserve* reserve, std::uint64_t seed,
         std::uint64_t call) {
        with_type(n.dtype, [&](auto zero) {
          forward_as<decltype(zero)>(n, w, {x, h0, c0, lengths, reset, seed, call}, y, h_n, c_n, reserve);
        });
      },
      py::arg("network"), py::arg("weights"), py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("lengths"),
      py::arg("reset"), py::arg("y"), py::arg("h_n"), py::arg("c_n"), py::arg("reserve"), py::arg("seed"),
      py::arg("call"));

  m.def(
      "backward",
      [](const DeviceNetwork& n, const std::vector<DeviceArray>& parameters, const DeviceArray& x,
         const Optional& h0, const Optional& c0, const Optional& lengths, const Optional& reset,
         const DeviceArray& y, DeviceReserve& reserve, const Optional& dy, const Optional& dh_n,
         const Optional& dc_n, const Optional& dx, const DeviceArray& dh0, const Optional& dc0,
         const std::vector<DeviceArray>& gradients, bool add, std::uint64_t seed, std::uint64_t call) {
        with_type(n.dtype, [&](auto zero) {
          backward_as<decltype(zero)>(n, parameters, {x, h0, c0, lengths, reset, seed, call}, y, reserve,
                                      {dy, dh_n, dc_n}, {dx, dh0, dc0, gradients, add});
        });
      },
      py::arg("network"), py::arg("parameters"), py::arg("x"), py::arg("h0"), py::arg("c0"),
      py::arg("lengths"), py::arg("reset"), py::arg("y"), py::arg("reserve"), py::arg("dy"), py::arg("dh_n"),
      py::arg("dc_n"), py::arg("dx"), py::arg("dh0"), py::arg("dc0"), py::arg("gradients"), py::arg("add"),
      py::arg("seed"), py::arg("call"));

  py::class_<DeviceStream>(m, "Stream", py::module_local())
      .def(py::init([](const DeviceNetwork& n, const DeviceWeights& w,
                       Index batch) -> std::unique_ptr<DeviceStream> {
             return with_type(n.dtype, [&](auto zero) -> std::unique_ptr<DeviceStream> {
               return std::make_unique<DeviceStreamOf<decltype(zero)>>(n, w, batch);
             });
           }),
           py::arg("network"), py::arg("weights"), py::arg("batch"))
      .def("step", &DeviceStream::step, py::arg("x"), py::arg("rows"))
      .def("run", &DeviceStream::run, py::arg("x"), py::arg("y"))
      .def("__enter__", &DeviceStream::enter)
      .def("__exit__", [](DeviceStream& s, const py::args&) { s.leave(); })
      .def_readonly("h", &DeviceStream::h)
      .def_readonly("c", &DeviceStream::c);

  register_updates(m);
  m.def(
      "set_float32_products",
      [](const std::string& how) {
        float32_products = choose<cuda::Products>(how, "products", cuda::kProducts);
      },
      py::arg("how"));
  m.def("get_float32_products", [] { return cuda::name_of(float32_products.load(), cuda::kProducts); });
  m.def(
      "set_wish",
      [](const std::string& strategy, int ranks, int columns, const std::string& tile, bool backward) {
        cuda::Wish wish;
        if (!strategy.empty())
          wish.strategy = choose<cuda::Strategy>(strategy, "strategy", cuda::kStrategies);
        if (!tile.empty()) wish.tile = choose<cuda::TileKind>(tile, "tile", cuda::kTiles);
        wish.ranks = ranks;
        wish.columns = columns;
        const std::lock_guard<std::mutex> lock(wish_mutex);
        (backward ? backward_wish : forward_wish) = wish;
      },
      py::arg("strategy") = "", py::arg("ranks") = 0, py::arg("columns") = 0, py::arg("tile") = "",
      py::arg("backward") = false);
}

}  // namespace fastrnn::bind
