// The cells' formulas on plain numbers: forward against the equations written with <cmath>, backward against
// central differences.
#include <functional>

#include "cells/elman.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "check.h"

using namespace fastrnn;

namespace {

constexpr double step = 1e-6;
constexpr double tolerance = 1e-8;  // step^2, and rounding of 1e-16 / step, times derivatives of order 1

double derivative(const std::function<double(double)>& f, double x) {
  return (f(x + step) - f(x - step)) / (2 * step);
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

TEST(cells_activations_of_both_types) {
  for (double x = -20; x <= 20; x += 0.37) {
    CHECK_NEAR(cells::sigmoid(x), logistic(x), 1e-15);
    CHECK_NEAR(cells::tanh(x), std::tanh(x), 1e-15);
    const float y = static_cast<float>(x);
    CHECK_NEAR(cells::sigmoid(y), logistic(static_cast<double>(y)), 4e-7);
    CHECK_NEAR(cells::tanh(y), std::tanh(static_cast<double>(y)), 4e-7);
  }
}

TEST(cells_lstm_forward) {
  const double a_i = 0.3, a_f = -0.7, a_g = 1.1, a_o = 0.2, c = -0.4;
  const cells::LstmState<double> s = cells::lstm_cell(a_i, a_f, a_g, c);
  const double expected = logistic(a_f) * c + logistic(a_i) * std::tanh(a_g);
  CHECK_NEAR(s.c, expected, 1e-15);
  CHECK_NEAR(cells::lstm_hidden(cells::sigmoid(a_o), s.c), logistic(a_o) * std::tanh(expected), 1e-15);
}

TEST(cells_lstm_backward) {
  const double a_i = 0.3, a_f = -0.7, a_g = 1.1, a_o = 0.2, c_prev = -0.4;
  const double dh = 0.8, dc_next = -0.6;  // the loss is dh * h' + dc_next * c'
  const auto loss = [&](double i, double f, double g, double o, double c) {
    const cells::LstmState<double> s = cells::lstm_cell(i, f, g, c);
    return dh * cells::lstm_hidden(cells::sigmoid(o), s.c) + dc_next * s.c;
  };
  const cells::LstmState<double> s = cells::lstm_cell(a_i, a_f, a_g, c_prev);
  double da_i, da_f, da_g, da_o, dc_prev, dc = dc_next;
  cells::lstm_output_backward(dh, cells::sigmoid(a_o), s.c, da_o, dc);
  cells::lstm_cell_backward(dc, s.i, s.f, s.g, c_prev, da_i, da_f, da_g, dc_prev);
  CHECK_NEAR(da_i, derivative([&](double v) { return loss(v, a_f, a_g, a_o, c_prev); }, a_i), tolerance);
  CHECK_NEAR(da_f, derivative([&](double v) { return loss(a_i, v, a_g, a_o, c_prev); }, a_f), tolerance);
  CHECK_NEAR(da_g, derivative([&](double v) { return loss(a_i, a_f, v, a_o, c_prev); }, a_g), tolerance);
  CHECK_NEAR(da_o, derivative([&](double v) { return loss(a_i, a_f, a_g, v, c_prev); }, a_o), tolerance);
  CHECK_NEAR(dc_prev, derivative([&](double v) { return loss(a_i, a_f, a_g, a_o, v); }, c_prev), tolerance);
}

TEST(cells_gru_forward) {
  CHECK_NEAR(cells::gru_candidate_after(0.4, 0.3, -1.2), std::tanh(0.4 + 0.3 * -1.2), 1e-15);
  CHECK_NEAR(cells::gru_hidden(0.25, 0.5, -0.8), 0.75 * 0.5 + 0.25 * -0.8, 1e-15);
}

TEST(cells_gru_backward) {
  const double a_r = -0.2, a_z = 0.6, a_n = 0.9, q = -0.5, h_prev = 0.35, dh = 1.3;
  const auto loss = [&](double ar, double az, double an, double h) {
    const double n = cells::gru_candidate_after(an, cells::sigmoid(ar), q);
    return dh * cells::gru_hidden(cells::sigmoid(az), n, h);
  };
  const double r = cells::sigmoid(a_r), z = cells::sigmoid(a_z), n = cells::gru_candidate_after(a_n, r, q);
  double da_z, da_n, dh_prev;
  cells::gru_backward(dh, z, n, h_prev, da_z, da_n, dh_prev);
  const double da_r = cells::gru_reset_backward(da_n, q, r);
  CHECK_NEAR(da_r, derivative([&](double v) { return loss(v, a_z, a_n, h_prev); }, a_r), tolerance);
  CHECK_NEAR(da_z, derivative([&](double v) { return loss(a_r, v, a_n, h_prev); }, a_z), tolerance);
  CHECK_NEAR(da_n, derivative([&](double v) { return loss(a_r, a_z, v, h_prev); }, a_n), tolerance);
  CHECK_NEAR(dh_prev, derivative([&](double v) { return loss(a_r, a_z, a_n, v); }, h_prev), tolerance);
}

TEST(cells_elman) {
  for (const Nonlinearity kind :
       {Nonlinearity::tanh, Nonlinearity::relu, Nonlinearity::sigmoid, Nonlinearity::identity}) {
    for (const double a : {-1.4, -0.3, 0.2, 2.1}) {
      const double h = cells::activate(kind, a);
      const double numeric = derivative([&](double v) { return 1.7 * cells::activate(kind, v); }, a);
      CHECK_NEAR(cells::activate_backward(kind, 1.7, h), numeric, tolerance);
    }
  }
  CHECK_NEAR(cells::activate(Nonlinearity::relu, -1.4), 0, 0);
  CHECK_NEAR(cells::activate(Nonlinearity::relu, 2.1), 2.1, 0);
  CHECK_NEAR(cells::activate_backward(Nonlinearity::relu, 1.7, 0.0), 0, 0);  // relu'(0) = 0
}
