// What trains networks beside their own calls: steps of optimizers, norms of gradients.
#include <string>
#include <tuple>
#include <vector>

#include "bind/arrays.h"
#include "bind/optimizer_numbers.h"
#include "bind/options.h"
#include "bind/register.h"
#include "ops/arrays.h"

namespace fastrnn::bind {
namespace {

// Elements that take 2 us by the slowest set: below, the interpreter lock is kept.
constexpr Index kLong = 4096;

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
      if (!a.dtype().is(other.dtype())) {
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
}

}  // namespace fastrnn::bind
