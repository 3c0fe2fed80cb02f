// An optimizer's rule and the numbers of its step, from Python's keywords.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <utility>

#include "bind/options.h"
#include "cells/optimizers.h"

namespace fastrnn::bind {

// A rule, and how many buffers it has.
inline std::pair<cells::Rule, std::size_t> rule_of(const std::string& name) {
  using cells::Rule;
  const Rule rule = choose<Rule>(
      name, "rule",
      {{"sgd", Rule::sgd}, {"adagrad", Rule::adagrad}, {"rmsprop", Rule::rmsprop}, {"adam", Rule::adam}});
  return {rule, rule == Rule::sgd || rule == Rule::adagrad ? 1 : 2};
}

// `bias1` and `bias2` are the b1 and b2 of cells::step_size.
struct StepNumbers {
  double learning_rate, bias1, bias2;
  cells::UpdateNumbers<double> update;  // but for rate and root
};

inline StepNumbers step_numbers(const pybind11::dict& named) {
  const auto number = [&](const char* name, double otherwise) {
    return named.contains(name) ? named[name].cast<double>() : otherwise;
  };
  StepNumbers step{number("learning_rate", 0), number("bias1", 0), number("bias2", 0), {}};
  cells::UpdateNumbers<double>& n = step.update;
  n.weight_decay = number("weight_decay", 0);
  n.momentum = number("momentum", 0);
  if (number("nesterov", 0) != 0) {
    n.now = 1;
    n.past = n.momentum;
  }
  n.b1 = number("b1", 0);
  n.rest1 = 1 - n.b1;
  n.b2 = number("b2", 0);
  n.rest2 = 1 - n.b2;
  n.eps = number("eps", 0);
  n.shrink = number("shrink", 1);
  return step;
}

}  // namespace fastrnn::bind
