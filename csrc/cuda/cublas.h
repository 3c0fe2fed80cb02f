// cuBLAS without a link to it: found when first needed, done without if absent.
#pragma once

#include <string>
#include <vector>

#include "cuda/runtime.h"

namespace fastrnn::cuda {

// What the products of one call share: a handle on the stream, and memory that cuBLAS may use.  Both are
// taken once for the scope, so that a graph has one allocation for all products; a product outside of any
// scope takes them for itself alone.  The scopes of a thread nest.
class CublasScope {
 public:
  explicit CublasScope(Stream stream);
  ~CublasScope();
  CublasScope(const CublasScope&) = delete;
  CublasScope& operator=(const CublasScope&) = delete;

  void* handle() const { return handle_; }  // null without cuBLAS
  Stream stream() const { return stream_; }
  const CublasScope* outer() const { return outer_; }  // the next larger one of this thread, or null

 private:
  Stream stream_;
  int device_ = 0;
  void* handle_ = nullptr;
  Memory memory_;
  CublasScope* outer_ = nullptr;
};

// Folders to look into, before the loader's own path, for a cuBLAS that the process has not loaded yet.
void set_cublas_folders(std::vector<std::string> folders);

// Which cuBLAS is in use, or why there is none.
std::string describe_cublas();

}  // namespace fastrnn::cuda
