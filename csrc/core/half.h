// The 16-bit element types, for storage: arithmetic is done in float.  Round to nearest, ties to even, by the
// same integer arithmetic on every machine; NaN stays NaN, and what is too large becomes infinite.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/types.h"

namespace fastrnn {

// IEEE binary16: 5 bits of exponent, 10 of fraction.
struct half_t {
  std::uint16_t bits;
};

// What an element type is called where it is chosen at run time.
enum class DType { float32, float64, float16, bfloat16 };

template <class T>
inline constexpr DType dtype_of = std::is_same_v<T, float>    ? DType::float32
                                  : std::is_same_v<T, double> ? DType::float64
                                  : std::is_same_v<T, half_t> ? DType::float16
                                                              : DType::bfloat16;

inline constexpr Index size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}
inline constexpr bool is_16_bit(DType dtype) { return size_of(dtype) == 2; }

FRNN_HOST_DEVICE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
FRNN_HOST_DEVICE float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// widen(x): x exactly, in its compute type.
FRNN_HOST_DEVICE float widen(float x) { return x; }
FRNN_HOST_DEVICE double widen(double x) { return x; }
FRNN_HOST_DEVICE float widen(bfloat16_t x) { return float_of(std::uint32_t{x.bits} << 16); }
FRNN_HOST_DEVICE float widen(half_t x) {
  const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16,
                      rest = std::uint32_t{x.bits & 0x7fffu} << 13;
  // The exponent moves from bias 15 to 127 by a multiplication, which makes subnormals normal on its way.
  if (rest < 0x0f800000u) return float_of(sign | bits_of(float_of(rest) * 0x1p112f));
  return float_of(sign | rest | 0x7f800000u);  // infinity, NaN
}

// narrow<T>(x): x rounded to T.
template <class T>
FRNN_HOST_DEVICE T narrow(Compute<T> x) {
  if constexpr (std::is_same_v<T, bfloat16_t>) {
    const std::uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};  // NaN
    return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
  } else if constexpr (std::is_same_v<T, half_t>) {
    const std::uint32_t sign = bits_of(x) >> 16 & 0x8000u, size = bits_of(x) & 0x7fffffffu;
    std::uint32_t rounded;
    if (size > 0x7f800000u) {
      rounded = 0x7e00u;  // NaN
    } else if (size >= 0x477ff000u) {
      rounded = 0x7c00u;  // 65520 and above
    } else if (size < 0x38800000u) {
      // Below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the last bits of the sum, rounded.
      rounded = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    } else {
      rounded = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
    }
    return {static_cast<std::uint16_t>(sign | rounded)};
  } else {
    return x;
  }
}

}  // namespace fastrnn
