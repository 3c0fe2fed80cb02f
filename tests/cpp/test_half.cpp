// half_t and bfloat16_t against their definition: every value there and back, and rounding checked by
// nearness.
#include <limits>
#include <random>

#include "check.h"
#include "core/half.h"

using namespace fastrnn;

namespace {

// The value that the bits stand for, from the definition.
double value(std::uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, largest = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & largest;
  const double fraction = std::ldexp(static_cast<double>(bits & ((1u << fraction_bits) - 1)), -fraction_bits);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == largest)
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1 + fraction, exponent - bias);
}

template <class T>
void check_type(int exponent_bits, int fraction_bits) {
  for (std::uint32_t i = 0; i < 0x10000; ++i) {
    const T x{static_cast<std::uint16_t>(i)};
    const double exact = value(i, exponent_bits, fraction_bits);
    const float wide = widen(x);
    if (std::isnan(exact)) {
      CHECK(std::isnan(wide));
      CHECK(std::isnan(widen(narrow<T>(wide))));
      continue;
    }
    CHECK(static_cast<double>(wide) == exact);
    CHECK(narrow<T>(wide).bits == i);
    // Between two neighbours: half way goes to the even one, a little to either side to the nearer one.
    if ((i & 0x7fffu) >= static_cast<std::uint32_t>(((1 << exponent_bits) - 1) << fraction_bits)) continue;
    const std::uint32_t next =
        i + 1;  // away from zero; past the largest number, infinity stands for 2^(bias+1)
    double above = value(next, exponent_bits, fraction_bits);
    if (std::isinf(above)) above = std::copysign(std::ldexp(1.0, 1 << (exponent_bits - 1)), exact);
    const float middle = static_cast<float>(exact / 2 + above / 2);  // one more bit than T: exact
    if (std::isinf(middle)) continue;                                // bfloat16's largest
    const float down = std::nextafter(middle, 0.0f), up = std::nextafter(middle, 2 * middle);
    CHECK(narrow<T>(middle).bits == (i % 2 == 0 ? i : next));
    if (down != 0) CHECK(narrow<T>(down).bits == i);
    CHECK(narrow<T>(up).bits == next);
  }
}

}  // namespace

TEST(half_values_and_rounding) {
  check_type<half_t>(5, 10);
  CHECK(narrow<half_t>(65519.99f).bits == 0x7bff);
  CHECK(narrow<half_t>(65520.0f).bits == 0x7c00);
  CHECK(narrow<half_t>(-1e30f).bits == 0xfc00);
  CHECK(narrow<half_t>(1e-30f).bits == 0);
  CHECK(narrow<half_t>(-0.0f).bits == 0x8000);
}

TEST(bfloat16_values_and_rounding) {
  check_type<bfloat16_t>(8, 7);
  CHECK(narrow<bfloat16_t>(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(narrow<bfloat16_t>(-0.0f).bits == 0x8000);
}
