// The structures of DLPack, by which libraries hand each other arrays: its binary interface, versions before
// 1.0 (plain) and from 1.0 on (versioned).
#pragma once

#include <cstdint>

namespace fastrnn::bind::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
inline constexpr bool is_cuda(int type) { return type == kCuda || type == kCudaManaged; }
enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };
inline constexpr std::uint64_t kReadOnly = 1, kIsCopied = 2;

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: contiguous
  std::uint64_t byte_offset;
};

struct Plain {
  static constexpr const char* kName = "dltensor";
  static constexpr const char* kUsedName = "used_dltensor";

  Tensor tensor;
  void* context;
  void (*deleter)(Plain* self);
};

struct Versioned {
  static constexpr const char* kName = "dltensor_versioned";
  static constexpr const char* kUsedName = "used_dltensor_versioned";

  std::uint32_t major, minor;
  void* context;
  void (*deleter)(Versioned* self);
  std::uint64_t flags;
  Tensor tensor;
};

// The table of functions of a type of tensors; only the one that is called is spelled out.
struct Exchange {
  static constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
  static constexpr const char* kName = "dlpack_exchange_api";

  std::uint32_t major, minor;
  Exchange* older;
  void *allocate, *lend, *take;
  // What it fills in belongs to the tensor.  Anything but 0: a Python error is set.
  int (*read)(void* tensor, Tensor* out);
  void* stream;
};

}  // namespace fastrnn::bind::dlpack
