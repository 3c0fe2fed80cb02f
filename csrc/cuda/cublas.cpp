// The library is opened by name, so that neither a build nor an installation depends on it: the copy that the
// process has already (a framework's), then that of a wheel, then what the loader finds.  The few functions
// used have kept their signatures from version 11 to 13; they are declared here.
#include "cuda/cublas.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>

#include "cuda/gemm.h"

namespace fastrnn::cuda {

namespace {

// Values of cuBLAS's and CUDA's enumerations.
enum Operation { kAsItIs = 0, kTransposed = 1 };
enum DataType { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 14 };
enum ComputeType { kCompute32 = 68, kCompute64 = 70, kComputeTf32 = 77 };
constexpr int kDefaultAlgorithm = -1;
constexpr int kNoReducedPrecision = 16;  // of math modes: partial sums of 16-bit products stay in float32

struct Library {
  int (*create)(void** handle) = nullptr;
  int (*set_stream)(void* handle, void* stream) = nullptr;
  int (*set_memory)(void* handle, void* memory, std::size_t bytes) = nullptr;
  int (*set_math)(void* handle, int mode) = nullptr;
  int (*property)(int which, int* value) = nullptr;  // needs no handle, which would set up a device
  int (*gemm)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
              int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type,
              int ldc, int compute_type, int algorithm) = nullptr;
  const char* (*status_name)(int status) = nullptr;
  std::string path;
  std::string why_not;  // empty if it can be used

  explicit operator bool() const { return why_not.empty(); }
};

struct State {
  std::mutex mutex;
  std::vector<std::string> folders;
  bool searched = false;
  Library library;
  std::map<int, std::vector<void*>> spare;  // handles of each device; never destroyed
};
State& state() {
  static State* const all = new State;
  return *all;
}

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

void* open(const std::vector<std::string>& folders) {
  constexpr std::array<const char*, 2> kVersions{".so.13", ".so.12"};
  const std::string name = "libcublas", needed = "libcublasLt";
  for (const char* version : kVersions) {
    if (void* loaded = dlopen((name + version).c_str(), RTLD_NOW | RTLD_NOLOAD)) return loaded;
  }
  for (const char* version : kVersions) {
    for (const std::string& folder : folders) {
      const std::string path = folder + "/" + name + version;
      if (access(path.c_str(), R_OK) != 0) continue;
      // The loader might find another version of it first, in LD_LIBRARY_PATH or the system's folders.
      dlopen((folder + "/" + needed + version).c_str(), RTLD_NOW);
      if (void* opened = dlopen(path.c_str(), RTLD_NOW)) return opened;
    }
  }
  for (const char* version : kVersions) {
    if (void* opened = dlopen((name + version).c_str(), RTLD_NOW)) return opened;
  }
  return nullptr;
}

Library load(const std::vector<std::string>& folders) {
  Library l;
  const char* wanted = std::getenv("FASTRNN_CUBLAS");
  if (wanted && std::string(wanted) == "0") {
    l.why_not = "FASTRNN_CUBLAS is 0";
    return l;
  }
  void* opened = open(folders);
  if (!opened) {
    l.why_not = "no libcublas.so.13 or .12 was found; the wheel nvidia-cublas has one";
    return l;
  }
  const bool complete =
      find(opened, "cublasCreate_v2", l.create) && find(opened, "cublasSetStream_v2", l.set_stream) &&
      find(opened, "cublasSetWorkspace_v2", l.set_memory) && find(opened, "cublasSetMathMode", l.set_math) &&
      find(opened, "cublasGetProperty", l.property) && find(opened, "cublasGemmEx", l.gemm) &&
      find(opened, "cublasGetStatusName", l.status_name);
  Dl_info info;
  if (complete && dladdr(reinterpret_cast<void*>(l.gemm), &info) && info.dli_fname) l.path = info.dli_fname;
  if (!complete) l.why_not = "the libcublas that was found lacks a function that is needed";
  return l;
}

// With the mutex held.
const Library& library(State& s) {
  if (!s.searched) {
    s.library = load(s.folders);
    s.searched = true;
  }
  return s.library;
}

void check(int status, const std::string& call) {
  if (status == 0) return;
  throw Error(call + " failed: " + state().library.status_name(status) + " [" + __FILE__ + "]");
}

// A handle of the current device, for work on a stream; null without cuBLAS. One that does not start is an
// error, not a reason to go without: it may be for want of memory, or because a graph is captured elsewhere,
// and the next call would differ.
void* take_handle(int device, Stream stream) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const Library& l = library(s);
  if (!l) return nullptr;
  std::vector<void*>& spare = s.spare[device];
  if (!spare.empty()) {
    void* handle = spare.back();
    spare.pop_back();
    return handle;
  }
  refuse_in_graph(
      stream,
      "cuBLAS is not set up for this call yet, and a graph cannot do it; make an equal call before "
      "the capture");
  void* handle = nullptr;
  if (const int status = l.create(&handle)) {
    throw Error(l.path + " does not start: " + l.status_name(status) +
                "; FASTRNN_CUBLAS=0 does without it (a graph can be captured after an equal call)");
  }
  check(l.set_math(handle, kNoReducedPrecision), "cublasSetMathMode");
  return handle;
}

void return_handle(int device, void* handle) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.spare[device].push_back(handle);
}

thread_local CublasScope* innermost = nullptr;

int data_type(DType dtype) {
  switch (dtype) {
    case DType::float64: return kFloat64;
    case DType::float16: return kFloat16;
    case DType::bfloat16: return kBfloat16;
    default: return kFloat32;
  }
}

bool fits_int(Index n) { return n <= std::numeric_limits<int>::max(); }

}  // namespace

CublasScope::CublasScope(Stream stream) : stream_(stream), device_(current_device()), outer_(innermost) {
  handle_ = take_handle(device_, stream);
  if (handle_) {
    try {
      // What NVIDIA recommends; with less, some products run by slower kernels.
      const std::size_t bytes = std::size_t{device_info(device_).limits.capability() >= 90 ? 32u : 4u} << 20;
      void* memory = memory_.reserve(bytes, stream);
      const Library& l = state().library;
      check(l.set_stream(handle_, stream.handle), "cublasSetStream");  // which drops the memory set before
      check(l.set_memory(handle_, memory, bytes), "cublasSetWorkspace");
    } catch (...) {
      return_handle(device_, handle_);
      throw;
    }
  }
  innermost = this;
}

CublasScope::~CublasScope() {
  innermost = outer_;
  if (handle_) return_handle(device_, handle_);
}

bool gemm_cublas(Stream stream, const Gemm& p) {
  if (!fits_int(p.rows) || !fits_int(p.columns) || !fits_int(p.depth) || !fits_int(p.a.stride) ||
      !fits_int(p.b.stride) || !fits_int(p.c_stride)) {
    return false;
  }
  const CublasScope* scope = innermost;
  while (scope && !(scope->stream() == stream)) scope = scope->outer();
  if (!scope) {
    const CublasScope own(stream);
    return own.handle() && gemm_cublas(stream, p);
  }
  if (!scope->handle()) return false;
  const double one_double = 1, beta_double = p.add ? 1 : 0;
  const float one = 1, beta = p.add ? 1 : 0;
  const bool wide = p.dtype == DType::float64;
  const int type = data_type(p.dtype);
  const int compute = wide ? kCompute64 : p.tf32 && p.dtype == DType::float32 ? kComputeTf32 : kCompute32;
  // cuBLAS is column-major: it sees each matrix transposed, so C^T = op(B)^T op(A)^T.
  const int status = state().library.gemm(
      scope->handle(), p.b.transposed ? kTransposed : kAsItIs, p.a.transposed ? kTransposed : kAsItIs,
      static_cast<int>(p.columns), static_cast<int>(p.rows), static_cast<int>(p.depth),
      wide ? static_cast<const void*>(&one_double) : &one, p.b.data, type, static_cast<int>(p.b.stride),
      p.a.data, type, static_cast<int>(p.a.stride), wide ? static_cast<const void*>(&beta_double) : &beta,
      p.c, p.wide_out && is_16_bit(p.dtype) ? kFloat32 : type, static_cast<int>(p.c_stride), compute,
      kDefaultAlgorithm);
  if (status != 0) {
    check(status, "cublasGemmEx (" + std::to_string(p.rows) + ", " + std::to_string(p.depth) + ") x (" +
                      std::to_string(p.depth) + ", " + std::to_string(p.columns) + ")");
  }
  return true;
}

void set_cublas_folders(std::vector<std::string> folders) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.folders = std::move(folders);
}

std::string describe_cublas() {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const Library& l = library(s);
  if (!l) return l.why_not;
  std::string version;
  for (const int part : {0, 1, 2}) {  // major, minor, patch
    int value = 0;
    l.property(part, &value);
    version += (part ? "." : "") + std::to_string(value);
  }
  return version + " (" + l.path + ")";
}

}  // namespace fastrnn::cuda
