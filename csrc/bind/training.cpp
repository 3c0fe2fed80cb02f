// What trains networks beside their own calls: steps of optimizers, norms of gradients, the loss of logits,
// the output layer.
#include <string>
#include <vector>

#include "bind/arrays.h"
#include "bind/optimizer_numbers.h"
#include "bind/options.h"
#include "bind/register.h"
#include "ops/arrays.h"

namespace fastrnn::bind {
namespace {

// Elements that take 2 us by the slowest set: below, the interpreter lock is kept.
constexpr Index kLong = 4096, kLongProduct = 100000;

// Arrays of float32 or float64, contiguous: their pointers, all checked before any is used.
class Arrays {
 public:
  Arrays(const py::sequence& from, const char* name) {
    for (std::size_t i = 0; i < from.size(); ++i) {
      const std::string label = std::string(name) + "[" + std::to_string(i) + "]";
      arrays_.push_back(as_array(py::object(from[i]), label.c_str()));
      const py::array& a = arrays_.back();
      if (!py::isinstance<py::array_t<float>>(a) && !py::isinstance<py::array_t<double>>(a)) {
        throw py::type_error(label + " is " + py::str(a.dtype()).cast<std::string>() +
                             "; expected float32 or float64");
      }
      check_memory(a, kPlain, label.c_str());
      total_ += a.size();
    }
  }
  // Of the same dtypes and shapes as others.
  Arrays(const py::sequence& from, const char* name, const Arrays& like) : Arrays(from, name) {
    if (size() != like.size()) {
      throw py::value_error(std::string(name) + " has " + std::to_string(size()) + " arrays; expected " +
                            std::to_string(like.size()));
    }
    for (std::size_t i = 0; i < size(); ++i) {
      const py::array &a = arrays_[i], &other = like.arrays_[i];
      const std::string label = std::string(name) + "[" + std::to_string(i) + "]";
      // Not by identity: a dtype that was pickled is an object of its own.
      if (!a.dtype().equal(other.dtype())) {
        throw py::type_error(label + " is " + py::str(a.dtype()).cast<std::string>() + "; expected " +
                             py::str(other.dtype()).cast<std::string>());
      }
      if (shape_text(a) != shape_text(other))
        throw py::value_error(label + " has shape " + shape_text(a) + "; expected " + shape_text(other));
    }
  }

  std::size_t size() const { return arrays_.size(); }
  Index total() const { return total_; }
  Index count(std::size_t i) const { return arrays_[i].size(); }
  template <class T>
  bool is(std::size_t i) const {
    return arrays_[i].itemsize() == sizeof(T);
  }
  template <class T>
  const T* pointer(std::size_t i) const {
    return static_cast<const T*>(arrays_[i].data());
  }
  template <class T>
  T* mutable_pointer(std::size_t i) {
    return static_cast<T*>(arrays_[i].mutable_data());
  }

 private:
  std::vector<py::array> arrays_;
  Index total_ = 0;
};

template <class T>
std::vector<cpu::Update<T>> updates(cells::Rule rule, const cells::UpdateNumbers<T>& numbers, Arrays& p,
                                    const Arrays& g, std::vector<Arrays>& buffers) {
  std::vector<cpu::Update<T>> list;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (!p.is<T>(i)) continue;
    list.push_back({rule, &numbers, p.mutable_pointer<T>(i), g.pointer<T>(i),
                    buffers[0].mutable_pointer<T>(i),
                    buffers.size() > 1 ? buffers[1].mutable_pointer<T>(i) : nullptr, 0, p.count(i)});
  }
  return list;
}

void update_arrays(const std::string& rule_name, const py::sequence& parameters,
                   const py::sequence& gradients, const py::sequence& buffers, const py::dict& named,
                   double steps) {
  const auto [rule, wanted] = rule_of(rule_name);
  Arrays p(parameters, "parameters");
  const Arrays g(gradients, "gradients", p);
  std::vector<Arrays> kept;
  for (const auto& list : buffers) kept.emplace_back(py::cast<py::sequence>(list), "buffers", p);
  if (kept.size() != wanted) throw py::value_error("the rule takes another number of buffers");
  StepNumbers step = step_numbers(named);
  const cells::StepSize size = cells::step_size(step.learning_rate, step.bias1, step.bias2, steps);
  cells::UpdateNumbers<double>& numbers = step.update;
  numbers.rate = size.rate;
  numbers.root = size.root;
  const cells::UpdateNumbers<float> rounded(numbers);
  const auto single = updates<float>(rule, rounded, p, g, kept);
  const auto wide = updates<double>(rule, numbers, p, g, kept);
  const Unlocked unlocked(p.total() >= kLong);
  update(single);
  update(wide);
}

template <class Body>
auto with_float(const py::array& a, Body body) {
  return py::isinstance<py::array_t<double>>(a) ? body(double{}) : body(float{});
}

template <class T>
Linear<T> linear_shape(const py::array& x, const py::array& weight) {
  Linear<T> shape;
  shape.rows = x.ndim() == 2 ? x.shape(0) : 0;
  shape.inputs = x.ndim() == 2 ? x.shape(1) : 0;
  shape.outputs = weight.ndim() == 2 ? weight.shape(0) : 0;
  shape.weight = pointer<T>(weight, {shape.outputs, shape.inputs}, "weight");
  return shape;
}

}  // namespace

void register_training(py::module_& m) {
  m.def("update", &update_arrays, py::arg("rule"), py::arg("parameters"), py::arg("gradients"),
        py::arg("buffers"), py::arg("numbers"), py::arg("steps"));
  m.def(
      "sum_of_squares",
      [](const py::sequence& from) {
        const Arrays arrays(from, "arrays");
        const Unlocked unlocked(arrays.total() >= kLong);
        double sum = 0;
        for (std::size_t i = 0; i < arrays.size(); ++i) {
          sum += arrays.is<float>(i) ? sum_of_squares(arrays.pointer<float>(i), arrays.count(i))
                                     : sum_of_squares(arrays.pointer<double>(i), arrays.count(i));
        }
        return sum;
      },
      py::arg("arrays"));
  m.def(
      "scale",
      [](const py::sequence& from, double factor) {
        Arrays arrays(from, "arrays");
        std::vector<void*> pointers;
        for (std::size_t i = 0; i < arrays.size(); ++i) pointers.push_back(arrays.mutable_pointer<void>(i));
        const Unlocked unlocked(arrays.total() >= kLong);
        for (std::size_t i = 0; i < arrays.size(); ++i) {
          if (arrays.is<float>(i)) {
            scale(static_cast<float*>(pointers[i]), arrays.count(i), factor);
          } else {
            scale(static_cast<double*>(pointers[i]), arrays.count(i), factor);
          }
        }
      },
      py::arg("arrays"), py::arg("factor"));
  m.def(
      "softmax_cross_entropy",
      [](const py::array& logits, const py::array& targets, const py::object& scored, py::array& gradient,
         double scale) {
        return with_float(logits, [&](auto zero) {
          using T = decltype(zero);
          const Index rows = targets.size(), width = logits.ndim() == 2 ? logits.shape(1) : 0;
          cpu::SoftmaxCrossEntropy<T> p;
          p.last = rows;
          p.width = width;
          p.logits = pointer<T>(logits, {rows, width}, "logits");
          p.targets = pointer<std::int64_t>(targets, {rows}, "targets");
          p.scored = optional_bytes(scored, {rows}, "scored");
          p.scale = static_cast<T>(scale);
          p.gradient = mutable_pointer<T>(gradient, {rows, width}, "gradient");
          const Unlocked unlocked(rows * width >= kLong);
          return softmax_cross_entropy(p);
        });
      },
      py::arg("logits"), py::arg("targets"), py::arg("scored"), py::arg("gradient"), py::arg("scale"));
  m.def(
      "linear_forward",
      [](const py::array& x, const py::array& weight, const py::object& bias, py::array& y) {
        with_float(x, [&](auto zero) {
          using T = decltype(zero);
          const Linear<T> shape = linear_shape<T>(x, weight);
          const T* from = pointer<T>(x, {shape.rows, shape.inputs}, "x");
          const T* add = optional_pointer<T>(bias, {shape.outputs}, "bias");
          T* to = mutable_pointer<T>(y, {shape.rows, shape.outputs}, "y");
          const Unlocked unlocked(shape.rows * shape.inputs * shape.outputs >= kLongProduct);
          linear_forward(shape, from, add, to);
        });
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"));
  m.def(
      "linear_backward",
      [](const py::array& x, const py::array& dy, const py::array& weight, const py::object& dx,
         py::array& dweight, const py::object& dbias) {
        with_float(x, [&](auto zero) {
          using T = decltype(zero);
          const Linear<T> shape = linear_shape<T>(x, weight);
          const T* from = pointer<T>(x, {shape.rows, shape.inputs}, "x");
          const T* gradient = pointer<T>(dy, {shape.rows, shape.outputs}, "dy");
          T* to = optional_mutable_pointer<T>(dx, {shape.rows, shape.inputs}, "dx");
          T* weights = mutable_pointer<T>(dweight, {shape.outputs, shape.inputs}, "dweight");
          T* biases = optional_mutable_pointer<T>(dbias, {shape.outputs}, "dbias");
          const Unlocked unlocked(shape.rows * shape.inputs * shape.outputs >= kLongProduct);
          linear_backward(shape, from, gradient, to, weights, biases);
        });
      },
      py::arg("x"), py::arg("dy"), py::arg("weight"), py::arg("dx"), py::arg("dweight"), py::arg("dbias"));
}

}  // namespace fastrnn::bind
