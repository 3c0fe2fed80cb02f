#include "cpu/pack.h"

#include <vector>

namespace fastrnn::cpu {
namespace {

template <class T>
T* take_panels(Arena& arena, Index gates, Index units, Index depth, int lanes) {
  return arena.take<T>(panel_count(units, lanes) * depth * gates * lanes);
}

// Gate g of unit u has its weights in the row from + (g * units + u) * depth.  The gates stand in their own
// order, beginning with gate `begin`.
template <class T>
void pack_gates(const T* from, Index gates, Index units, Index depth, int lanes, T* out, Index begin = 0) {
  for (Index first = 0; first < units; first += lanes) {
    const Index n = units - first < lanes ? units - first : lanes;
    for (Index g = 0; g < gates; ++g) {
      for (Index lane = 0; lane < lanes; ++lane) {
        T* to = out + g * lanes + lane;
        const T* row = from + ((g + begin) % gates * units + first + lane) * depth;
        for (Index k = 0; k < depth; ++k) to[k * gates * lanes] = lane < n ? row[k] : T(0);
      }
    }
    out += depth * gates * lanes;
  }
}

// Panels over the columns of the given rows.
template <class T>
void pack_transposed(const std::vector<const T*>& rows, Index units, const Kernels<T>& kernels, T* out) {
  const PackRows<T> args{
      rows.data(), static_cast<Index>(rows.size()), units, {0, panel_count(units, kernels.lanes)}, out};
  kernels.pack_rows(args);
}

template <class T>
void append_rows(std::vector<const T*>& rows, const T* first, Index count, Index width) {
  for (Index i = 0; i < count; ++i) rows.push_back(first + i * width);
}

bool reset_before(const LayerShape& s) { return s.cell == Cell::gru && !s.reset_after; }
bool reset_after(const LayerShape& s) { return s.cell == Cell::gru && s.reset_after; }

}  // namespace

template <class T>
PackedLayer<T>::PackedLayer(Arena& arena, const LayerShape& s, int lanes) {
  const Index H = s.hidden, R = s.recurrent();
  input = take_panels<T>(arena, s.gates(), H, s.input, lanes);
  recurrent = take_panels<T>(arena, reset_before(s) ? 2 : s.gates(), H, R, lanes);
  if (reset_before(s)) candidate = take_panels<T>(arena, 1, H, H, lanes);
  if (s.projection) projection = take_panels<T>(arena, 1, s.projection, H, lanes);
  if (s.peephole == Peephole::full) {
    peephole_cell = take_panels<T>(arena, 2, H, H, lanes);
    peephole_output = take_panels<T>(arena, 1, H, H, lanes);
  }
  if (s.peephole == Peephole::diagonal) peephole = arena.take<T>(3 * H);
  if (s.bias) {
    bias = arena.take<T>(s.gate_rows());
    if (reset_after(s)) candidate_bias = arena.take<T>(H);
  }
}

template <class T>
void PackedLayer<T>::pack(const LayerShape& s, int lanes, const LayerParameters<T>& from) {
  const Index H = s.hidden, R = s.recurrent();
  pack_gates(from.weight_ih, s.gates(), H, s.input, lanes, input);
  pack_gates(from.weight_hh, reset_before(s) ? 2 : s.gates(), H, R, lanes, recurrent, reset_after(s) ? 2 : 0);
  if (candidate) pack_gates(from.weight_hh + 2 * H * R, 1, H, R, lanes, candidate);
  if (projection) pack_gates(from.weight_hr, 1, s.projection, H, lanes, projection);
  if (peephole_cell) {
    pack_gates(from.weight_ch, 2, H, H, lanes, peephole_cell);
    pack_gates(from.weight_ch + 2 * H * H, 1, H, H, lanes, peephole_output);
  }
  if (peephole) {
    for (Index i = 0; i < 3 * H; ++i) peephole[i] = from.weight_ch[i];
  }
  if (bias) {
    const Index together = reset_after(s) ? 2 * H : s.gate_rows();
    for (Index i = 0; i < together; ++i) bias[i] = from.bias_ih[i] + from.bias_hh[i];
    for (Index i = together; i < s.gate_rows(); ++i) {
      bias[i] = from.bias_ih[i];
      candidate_bias[i - together] = from.bias_hh[i];
    }
  }
}

template <class T>
TransposedLayer<T>::TransposedLayer(Arena& arena, const LayerShape& s, int lanes, bool input_needed) {
  const Index H = s.hidden, R = s.recurrent();
  if (input_needed) input = take_panels<T>(arena, 1, s.input, s.gate_rows(), lanes);
  recurrent = take_panels<T>(arena, 1, R, s.recurrent_gradient_columns(), lanes);
  if (s.cell == Cell::gru) candidate = take_panels<T>(arena, 1, H, H, lanes);
  if (s.projection) projection = take_panels<T>(arena, 1, H, s.projection, lanes);
  if (s.peephole == Peephole::full) {
    peephole_cell = take_panels<T>(arena, 1, H, 2 * H, lanes);
    peephole_output = take_panels<T>(arena, 1, H, H, lanes);
  }
}

template <class T>
void TransposedLayer<T>::pack(const LayerShape& s, const Kernels<T>& kernels,
                              const LayerParameters<T>& from) {
  const Index H = s.hidden, R = s.recurrent();
  std::vector<const T*> rows;
  if (input) {
    append_rows(rows, from.weight_ih, s.gate_rows(), s.input);
    pack_transposed(rows, s.input, kernels, input);
  }
  // The order of dG's columns (LayerShape::gradient_columns).
  rows.clear();
  if (reset_after(s)) append_rows(rows, from.weight_hh + 2 * H * R, H, R);
  append_rows(rows, from.weight_hh, s.cell == Cell::gru ? 2 * H : s.gate_rows(), R);
  pack_transposed(rows, R, kernels, recurrent);
  if (reset_after(s)) pack_gates(from.weight_hh + 2 * H * R, 1, H, R, kernels.lanes, candidate);
  if (reset_before(s)) {
    rows.clear();
    append_rows(rows, from.weight_hh + 2 * H * R, H, R);
    pack_transposed(rows, H, kernels, candidate);
  }
  if (projection) {
    rows.clear();
    append_rows(rows, from.weight_hr, s.projection, H);
    pack_transposed(rows, H, kernels, projection);
  }
  if (peephole_cell) {
    rows.clear();
    append_rows(rows, from.weight_ch, 2 * H, H);
    pack_transposed(rows, H, kernels, peephole_cell);
    rows.clear();
    append_rows(rows, from.weight_ch + 2 * H * H, H, H);
    pack_transposed(rows, H, kernels, peephole_output);
  }
}

template struct PackedLayer<float>;
template struct PackedLayer<double>;
template struct TransposedLayer<float>;
template struct TransposedLayer<double>;

}  // namespace fastrnn::cpu
