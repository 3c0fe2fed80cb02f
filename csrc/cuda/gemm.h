// Matrix products on the device: one entry point over cuBLAS, where that was found, and a kernel of our own.
// Row-major.  C [rows, columns] = op(A) op(B), or += with `add`, where op(A) is [rows, depth], op(B) [depth,
// columns].
#pragma once

#include "core/half.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

struct Operand {
  const void* data = nullptr;
  Index stride = 0;         // elements from one row in memory to the next
  bool transposed = false;  // op(X) is the transpose of what lies in memory
};

struct Gemm {
  Index rows = 0, columns = 0, depth = 0;
  Operand a, b;
  void* c = nullptr;  // overlaps neither a nor b
  Index c_stride = 0;
  bool add = false;              // C += instead of =; without it C is not read
  DType dtype = DType::float32;  // of A and B
  // C is of the compute type (float for 16-bit elements), in which sums are formed in any case; else as A and
  // B.
  bool wide_out = false;
  bool tf32 = false;  // float32 may be rounded to tf32 on its way in
};

// Queued on the stream; allocates nothing of its own accord.  Nothing happens for no rows or columns; no
// depth means zeros.  Many products in a row want a CublasScope (cublas.h) around them.  The same product on
// the same device and libraries has the same bits.
void gemm(Stream stream, const Gemm& product);

// The two that gemm() chooses from.  gemm_cublas returns false, having done nothing, if there is no cuBLAS.
bool gemm_cublas(Stream stream, const Gemm& product);
void gemm_own(Stream stream, const Gemm& product);

}  // namespace fastrnn::cuda
