// The vector types and the activations on them, lane by lane against <cmath>.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "check.h"
#include "cpu/isa.h"
#include "vec_probe.h"

using namespace fastrnn;
using namespace fastrnn::cpu;

namespace {

template <class T>
using Lanes = std::vector<T>;  // exactly as long as a vector: AddressSanitizer sees a step past its end

template <class T>
const VecProbe<T>& probe(Isa isa) {
  constexpr bool single = std::is_same_v<T, float>;
  const auto pick = [](const auto& f, const auto& d) -> const VecProbe<T>& {
    if constexpr (single) {
      return f;
    } else {
      return d;
    }
  };
  switch (isa) {
#ifdef FRNN_HAVE_AVX2
    case Isa::avx2: return pick(avx2::float_probe, avx2::double_probe);
#endif
#ifdef FRNN_HAVE_AVX512
    case Isa::avx512: return pick(avx512::float_probe, avx512::double_probe);
#endif
    default: return pick(baseline::float_probe, baseline::double_probe);
  }
}

// Calls test(probe, fused) for both types and every set that this CPU has. `fused`: fma rounds once.
template <class F>
void for_all(F test) {
  for (const Isa isa : available_isas()) {
#ifdef __aarch64__
    const bool fused = true;
#else
    const bool fused = isa != Isa::baseline;
#endif
    test(probe<float>(isa), fused);
    test(probe<double>(isa), fused);
  }
}

template <class T>
bool same(T a, T b) {
  return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b);
}

template <class T>
std::size_t size(const VecProbe<T>& p) {
  return static_cast<std::size_t>(p.lanes);
}

// Calls test(x) for vectors that together hold all values, padded with the first.
template <class T, class F>
void for_values(const VecProbe<T>& p, const std::vector<T>& values, F test) {
  for (std::size_t i = 0; i < values.size(); i += size(p)) {
    Lanes<T> x(size(p), values[0]);
    for (std::size_t lane = 0; lane < size(p) && i + lane < values.size(); ++lane) x[lane] = values[i + lane];
    test(x);
  }
}

// Both signs, every size from the least denormal number to infinity, and NaN.
template <class T>
std::vector<T> all_sizes() {
  using Limits = std::numeric_limits<T>;
  std::vector<T> values{T(0), T(-0.0), Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN()};
  for (int e = Limits::min_exponent - Limits::digits; e < Limits::max_exponent; ++e) {
    for (const double mantissa : {1.0, 1.3, 1.9}) {
      values.push_back(std::ldexp(static_cast<T>(mantissa), e));
      values.push_back(-values.back());
    }
  }
  return values;
}

// |got - exact| in units of the last place of a result of that size.
template <class T>
double ulps(T got, long double exact) {
  const T size = std::max(std::abs(static_cast<T>(exact)), std::numeric_limits<T>::min());
  const T ulp = std::nextafter(size, std::numeric_limits<T>::infinity()) - size;
  return static_cast<double>(std::abs(static_cast<long double>(got) - exact) / static_cast<long double>(ulp));
}

}  // namespace

TEST(vec_has_the_width_of_its_set) {
  int bytes = 16;
  for (const Isa isa : available_isas()) {
    CHECK(probe<float>(isa).lanes * 4 == bytes);
    CHECK(probe<double>(isa).lanes * 8 == bytes);
    bytes *= 2;
  }
}

template <class T>
void check_arithmetic(const VecProbe<T>& p, bool fused) {
  // (1 + e)^2 - 1 = 2 e + e^2: an fma that rounds the product first loses e^2.
  const T e = std::numeric_limits<T>::epsilon();
  const Lanes<T> a(size(p), 1 + e), minus_one(size(p), -1);
  Lanes<T> out(size(p));
  p.fma(a.data(), a.data(), minus_one.data(), out.data());
  for (const T got : out) CHECK(got == (fused ? 2 * e + e * e : 2 * e));

  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for_values(p, {T(-3), T(-0.5), T(0.25), T(8), inf, -inf, nan}, [&](const Lanes<T>& x) {
    const Lanes<T> lo(size(p), -1), hi(size(p), 2);
    p.clamp(x.data(), lo.data(), hi.data(), out.data());
    for (std::size_t i = 0; i < size(p); ++i) {
      CHECK(same(out[i], std::isnan(x[i]) ? x[i] : std::min(std::max(x[i], T(-1)), T(2))));
    }
    p.select_less(x.data(), hi.data(), lo.data(), x.data(), out.data());
    for (std::size_t i = 0; i < size(p); ++i) CHECK(same(out[i], x[i] < 2 ? T(-1) : x[i]));
    p.relu(x.data(), out.data());
    for (std::size_t i = 0; i < size(p); ++i) CHECK(same(out[i], x[i] < 0 ? T(0) : x[i]));
  });
}

TEST(vec_arithmetic) {
  for_all([](const auto& p, bool fused) { check_arithmetic(p, fused); });
}

template <class T>
void check_zip(const VecProbe<T>& p) {
  Lanes<T> a(size(p)), b(size(p)), out(2 * size(p));
  for (std::size_t i = 0; i < size(p); ++i) {
    a[i] = static_cast<T>(i);
    b[i] = static_cast<T>(100 + i);
  }
  p.zip(a.data(), b.data(), out.data());
  for (std::size_t i = 0; i < 2 * size(p); ++i) CHECK(out[i] == (i % 2 ? b : a)[i / 2]);
}

TEST(vec_zip) {
  for_all([](const auto& p, bool) { check_zip(p); });
}

// The range that exp's range reduction asks for.
template <class T>
void check_scale(const VecProbe<T>& p) {
  std::vector<T> powers;
  for (int n = std::numeric_limits<T>::min_exponent - 1; n <= std::numeric_limits<T>::max_exponent + 22;
       ++n) {
    powers.push_back(static_cast<T>(n));
  }
  for (const T x : {T(1), T(1.41), T(0.71)}) {
    for_values(p, powers, [&](const Lanes<T>& n) {
      const Lanes<T> xs(size(p), x);
      Lanes<T> out(size(p));
      p.scale(xs.data(), n.data(), out.data());
      for (std::size_t i = 0; i < size(p); ++i) CHECK(same(out[i], std::ldexp(x, static_cast<int>(n[i]))));
    });
  }
}

TEST(vec_scale) {
  for_all([](const auto& p, bool) { check_scale(p); });
}

template <class T>
void check_copy(const VecProbe<T>& p) {
  for (std::size_t n = 1; n <= size(p); ++n) {
    Lanes<T> from(n), to(n, T(-1)), longer(size(p), T(-1));
    for (std::size_t i = 0; i < n; ++i) from[i] = static_cast<T>(i + 1);
    p.copy(from.data(), static_cast<Index>(n), to.data());
    CHECK(to == from);
    p.copy(from.data(), static_cast<Index>(n), longer.data());
    for (std::size_t i = n; i < size(p); ++i) CHECK(longer[i] == T(-1));
  }
}

TEST(vec_first_lanes_touch_nothing_else) {
  for_all([](const auto& p, bool) { check_copy(p); });
}

template <class T>
void check_activations(const VecProbe<T>& p) {
  constexpr double bound = 3;  // promised in cells/math.h, for results that are normal numbers
  for_values(p, all_sizes<T>(), [&](const Lanes<T>& x) {
    Lanes<T> sigmoid(size(p)), tanh(size(p));
    p.sigmoid(x.data(), sigmoid.data());
    p.tanh(x.data(), tanh.data());
    for (std::size_t i = 0; i < size(p); ++i) {
      if (std::isnan(x[i])) {
        CHECK(std::isnan(sigmoid[i]) && std::isnan(tanh[i]));
        continue;
      }
      const long double exact = static_cast<long double>(x[i]);
      const long double exact_sigmoid = 1 / (1 + std::exp(-exact));
      if (exact_sigmoid >= static_cast<long double>(std::numeric_limits<T>::min())) {
        CHECK_NEAR(ulps(sigmoid[i], exact_sigmoid), 0, bound);
      } else {
        CHECK_NEAR(sigmoid[i], 0, std::numeric_limits<T>::min());
      }
      CHECK_NEAR(ulps(tanh[i], std::tanh(exact)), 0, bound);
      CHECK(std::abs(tanh[i]) <= 1 && sigmoid[i] >= 0 && sigmoid[i] <= 1);
    }
  });
}

TEST(vec_activations) {
  for_all([](const auto& p, bool) { check_activations(p); });
}
