// Weights in the layout that the kernels read (kernels.h), for one direction of one layer.
#pragma once

#include "core/buffers.h"
#include "core/network.h"
#include "cpu/kernels.h"
#include "cpu/schedule.h"

namespace fastrnn::cpu {

inline Index panel_count(Index units, int lanes) { return (units + lanes - 1) / lanes; }

// For forward.  The constructor only lays out (with an empty arena it only measures); pack() fills a
// thread's share.
template <class W>
struct PackedLayer {
  using T = Compute<W>;
  W* input = nullptr;            // W_ih
  W* recurrent = nullptr;        // W_hh; GRU reset-before: its r and z; reset-after: n r z
  W* candidate = nullptr;        // GRU reset-before: W_hn
  W* projection = nullptr;       // W_hr
  W* peephole_cell = nullptr;    // full: W_ci, W_cf
  W* peephole_output = nullptr;  // full: W_co
  T* peephole = nullptr;         // diagonal, (3, H)
  T* bias = nullptr;             // (G, H): b_ih + b_hh, but for the reset-after candidate b_in alone
  T* candidate_bias = nullptr;   // reset-after: b_hn

  PackedLayer() = default;
  PackedLayer(Arena& arena, const LayerShape& shape, int lanes);
  void pack(const LayerShape& shape, const ForwardKernels<W>& kernels, const LayerParameters<T>& from,
            const Share& share);
};

// For backward: transposed, so that what was an output is now summed over.
template <class T>
struct TransposedLayer {
  T* input = nullptr;            // W_ih^T: panels over I, depth G*H
  T* recurrent = nullptr;        // W_hh^T: panels over R, depth recurrent_gradient_columns()
  T* candidate = nullptr;        // GRU: reset-before W_hn^T; reset-after W_hn itself, to compute q again
  T* projection = nullptr;       // W_hr^T: panels over H, depth P
  T* peephole_cell = nullptr;    // full: (W_ci, W_cf)^T, depth 2H
  T* peephole_output = nullptr;  // full: W_co^T

  TransposedLayer() = default;
  // `input_needed`: false where no gradient of x is asked for.
  TransposedLayer(Arena& arena, const LayerShape& shape, int lanes, bool input_needed);
  void pack(const LayerShape& shape, const Kernels<T>& kernels, const LayerParameters<T>& from,
            const Share& share);
};

}  // namespace fastrnn::cpu
