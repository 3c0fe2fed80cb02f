#include "cuda/gemm.h"

#include "core/check.h"
#include "cuda/kernels/gemm.h"
#include "cuda/launch.h"

namespace fastrnn::cuda {
namespace {

template <class T>
GemmOperand<T> operand(const Operand& from, Index rows, Index columns) {
  GemmOperand<T> to;
  to.data = static_cast<const T*>(from.data);
  to.stride = from.stride;
  to.outer = from.transposed ? columns : rows;
  to.inner = from.transposed ? rows : columns;
  to.transposed = from.transposed;
  return to;
}

template <class Kernel, class T>
void launch_gemm(Stream stream, const Gemm& p, typename Kernel::Params params) {
  params.rows = p.rows;
  params.columns = p.columns;
  params.depth = p.depth;
  params.a = operand<T>(p.a, p.rows, p.depth);
  params.b = operand<T>(p.b, p.depth, p.columns);
  params.c_stride = p.c_stride;
  params.add = p.add;
  const Index tiles = Kernel::tiles(p.rows, p.columns);
  FRNN_CHECK(tiles < Index{1} << 31, "product of impossible sizes");
  Grid grid;
  grid.blocks = static_cast<int>(tiles);
  grid.shared = typename Kernel::Layout().shared.bytes();
  launch<Kernel>(stream, grid, params);
}

template <class T>
void launch_fma(Stream stream, const Gemm& p) {
  typename GemmFma<T>::Params params;
  params.c = static_cast<T*>(p.c);
  launch_gemm<GemmFma<T>, T>(stream, p, params);
}

template <class T>
void launch_mma(Stream stream, const Gemm& p) {
  typename GemmMma<T>::Params params;
  params.c = p.c;
  params.wide = p.wide_out;
  launch_gemm<GemmMma<T>, T>(stream, p, params);
}

}  // namespace

void gemm_own(Stream stream, const Gemm& p) {
  switch (p.dtype) {
    case DType::float32: return launch_fma<float>(stream, p);
    case DType::float64: return launch_fma<double>(stream, p);
    case DType::float16: return launch_mma<half_t>(stream, p);
    case DType::bfloat16: return launch_mma<bfloat16_t>(stream, p);
  }
}

void gemm(Stream stream, const Gemm& p) {
  FRNN_CHECK(p.rows >= 0 && p.columns >= 0 && p.depth >= 0, "product of impossible sizes");
  if (p.rows == 0 || p.columns == 0) return;
  // Libraries differ in what they do about no depth.
  if (p.depth > 0 && gemm_cublas(stream, p)) return;
  gemm_own(stream, p);
}

}  // namespace fastrnn::cuda
