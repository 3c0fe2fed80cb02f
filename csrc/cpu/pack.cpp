#include "cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/half.h"

namespace fastrnn::cpu {
namespace {

template <class W>
W* take_panels(Arena& arena, Index gates, Index units, Index depth, int lanes) {
  return arena.take<W>(panel_count(units, lanes) * panel_size<W>(depth, gates, lanes));
}

// Turns the weights of one gate of one unit into W.
template <class W>
struct Quantizer;
template <>
struct Quantizer<bfloat16_t> {
  Quantizer(const float*, Index) {}
  bfloat16_t operator()(float w) { return narrow<bfloat16_t>(w); }
  void header(bfloat16_t*, Index, Index) const {}
};
template <>
struct Quantizer<std::int8_t> {
  Quantizer(const float* row, Index depth) {
    float largest = 0;
    for (Index k = 0; k < depth; ++k) {
      const float magnitude = std::fabs(row[k]);
      largest = magnitude <= largest ? largest : magnitude;  // also if it is NaN
      if (std::isnan(magnitude)) break;
    }
    scale = int8_scale(largest);
  }
  std::int8_t operator()(float w) {
    const auto q =
        scale.inverse == 0 ? std::int8_t{0} : static_cast<std::int8_t>(std::nearbyint(w * scale.inverse));
    sum += q;
    return q;
  }
  void header(std::int8_t* panel, Index at, Index count) const {
    const std::int32_t cancel = -128 * sum;
    std::memcpy(panel + at * 4, &scale.scale, 4);
    std::memcpy(panel + (count + at) * 4, &cancel, 4);
  }
  Int8Scale scale;
  std::int32_t sum = 0;
};

template <class W>
void quantize_columns(const PackColumns<W>& p, Index lanes) {
  constexpr Index group = kGroup<W>;
  const Index size = panel_size<W>(p.depth, p.gates, lanes), header = panel_header<W>(p.gates, lanes);
  for (Index panel = p.panels.first; panel < p.panels.last; ++panel) {
    W* out = p.out + panel * size;
    const Index first = panel * lanes, n = std::min(p.units - first, lanes);
    if (n < lanes || p.depth % group) std::fill_n(out, size, W{});
    for (Index g = 0; g < p.gates; ++g) {
      for (Index lane = 0; lane < n; ++lane) {
        W* to = out + header + (g * lanes + lane) * group;
        const float* row = p.from + ((g + p.begin) % p.gates * p.units + first + lane) * p.depth;
        Quantizer<W> quantize(row, p.depth);
        for (Index k = 0; k < p.depth; ++k)
          to[k / group * group * p.gates * lanes + k % group] = quantize(row[k]);
        quantize.header(out, g * lanes + lane, p.gates * lanes);
      }
    }
  }
}

template <class W>
void pack_columns(const Share& share, const ForwardKernels<W>& kernels, const Compute<W>* from, Index gates,
                  Index units, Index depth, W* out, Index begin = 0) {
  const Range panels = share.slice(panel_count(units, kernels.lanes));
  const PackColumns<W> args{from, gates, begin, units, depth, panels, out};
  if constexpr (kQuantized<W>) {
    quantize_columns(args, kernels.lanes);
  } else {
    kernels.pack_columns(args);
  }
}

// Panels over the columns of the given rows.
template <class T>
void pack_transposed(const Share& share, const std::vector<const T*>& rows, Index units,
                     const Kernels<T>& kernels, T* out) {
  const PackRows<T> args{rows.data(), static_cast<Index>(rows.size()), units,
                         share.slice(panel_count(units, kernels.lanes)), out};
  kernels.pack_rows(args);
}

template <class T>
void append_rows(std::vector<const T*>& rows, const T* first, Index count, Index width) {
  for (Index i = 0; i < count; ++i) rows.push_back(first + i * width);
}

bool reset_before(const LayerShape& s) { return s.cell == Cell::gru && !s.reset_after; }
bool reset_after(const LayerShape& s) { return s.cell == Cell::gru && s.reset_after; }

}  // namespace

template <class W>
PackedLayer<W>::PackedLayer(Arena& arena, const LayerShape& s, int lanes) {
  const Index H = s.hidden, R = s.recurrent();
  input = take_panels<W>(arena, s.gates(), H, s.input, lanes);
  recurrent = take_panels<W>(arena, reset_before(s) ? 2 : s.gates(), H, R, lanes);
  if (reset_before(s)) candidate = take_panels<W>(arena, 1, H, H, lanes);
  if (s.projection) projection = take_panels<W>(arena, 1, s.projection, H, lanes);
  if (s.peephole == Peephole::full) {
    peephole_cell = take_panels<W>(arena, 2, H, H, lanes);
    peephole_output = take_panels<W>(arena, 1, H, H, lanes);
  }
  if (s.peephole == Peephole::diagonal) peephole = arena.take<T>(3 * H);
  if (s.bias) {
    bias = arena.take<T>(s.gate_rows());
    if (reset_after(s)) candidate_bias = arena.take<T>(H);
  }
}

template <class W>
void PackedLayer<W>::pack(const LayerShape& s, const ForwardKernels<W>& kernels,
                          const LayerParameters<T>& from, const Share& share) {
  const Index H = s.hidden, R = s.recurrent();
  pack_columns(share, kernels, from.weight_ih, s.gates(), H, s.input, input);
  pack_columns(share, kernels, from.weight_hh, reset_before(s) ? 2 : s.gates(), H, R, recurrent,
               reset_after(s) ? 2 : 0);
  if (candidate) pack_columns(share, kernels, from.weight_hh + 2 * H * R, 1, H, R, candidate);
  if (projection) pack_columns(share, kernels, from.weight_hr, 1, s.projection, H, projection);
  if (peephole_cell) {
    pack_columns(share, kernels, from.weight_ch, 2, H, H, peephole_cell);
    pack_columns(share, kernels, from.weight_ch + 2 * H * H, 1, H, H, peephole_output);
  }
  if (share.tid != 0) return;
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
void TransposedLayer<T>::pack(const LayerShape& s, const Kernels<T>& kernels, const LayerParameters<T>& from,
                              const Share& share) {
  const Index H = s.hidden, R = s.recurrent();
  std::vector<const T*> rows;
  if (input) {
    append_rows(rows, from.weight_ih, s.gate_rows(), s.input);
    pack_transposed(share, rows, s.input, kernels, input);
  }
  // The order of dG's columns (LayerShape::gradient_columns).
  rows.clear();
  if (reset_after(s)) append_rows(rows, from.weight_hh + 2 * H * R, H, R);
  append_rows(rows, from.weight_hh, s.cell == Cell::gru ? 2 * H : s.gate_rows(), R);
  pack_transposed(share, rows, R, kernels, recurrent);
  if (reset_after(s)) pack_columns<T>(share, kernels, from.weight_hh + 2 * H * R, 1, H, R, candidate);
  if (reset_before(s)) {
    rows.clear();
    append_rows(rows, from.weight_hh + 2 * H * R, H, R);
    pack_transposed(share, rows, H, kernels, candidate);
  }
  if (projection) {
    rows.clear();
    append_rows(rows, from.weight_hr, s.projection, H);
    pack_transposed(share, rows, H, kernels, projection);
  }
  if (peephole_cell) {
    rows.clear();
    append_rows(rows, from.weight_ch, 2 * H, H);
    pack_transposed(share, rows, H, kernels, peephole_cell);
    rows.clear();
    append_rows(rows, from.weight_ch + 2 * H * H, H, H);
    pack_transposed(share, rows, H, kernels, peephole_output);
  }
}

template struct PackedLayer<float>;
template struct PackedLayer<double>;
template struct PackedLayer<bfloat16_t>;
template struct PackedLayer<std::int8_t>;
template struct TransposedLayer<float>;
template struct TransposedLayer<double>;

}  // namespace fastrnn::cpu
