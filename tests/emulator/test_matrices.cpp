// ldmatrix and mma against plain products: is every element where fragment.h says?
#include <vector>

#include "check.h"
#include "emulator/launch_emulated.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

constexpr int kM = 16, kN = 8, kK = 16;

// C [16,8] = A [16,16] B, with B as [16,8] and as its transpose [8,16]: both ways to load it.
template <class T>
struct TileProduct {
  static constexpr const char* kName = "tile_product";
  static constexpr int kThreads = 32;
  struct Params {
    const T* a;         // [16,16]
    const T* b;         // [16,8]
    float* c;           // [16,8], +=
    float* c_from_b_t;  // the same
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto a = x.view(layout.take<T>(kM * kK));
    const auto b = x.view(layout.take<T>(kK * kN));
    const auto b_t = x.view(layout.take<T>(kN * kK));
    for (int i = x.lane(); i < kM * kK; i += kWarp) a.store(i, p.a[i]);
    for (int i = x.lane(); i < kK * kN; i += kWarp) {
      b.store(i, p.b[i]);
      b_t.store(i % kN * kK + i / kN, p.b[i]);
    }
    x.sync_warp();

    // Quarters of A: rows change first, then k.  B has two matrices only; the other two are not used.
    const int row = x.lane() % 8, matrix = x.lane() / 8;
    const FragmentA<T> fa = x.ldmatrix_x4(a.from((row + matrix % 2 * 8) * kK + matrix / 2 * 8));
    const Matrices<T> rows = x.ldmatrix_x4_trans(b.from((row + matrix % 2 * 8) * kN));
    const Matrices<T> columns = x.ldmatrix_x4(b_t.from(row * kK + matrix % 2 * 8));

    FragmentC c = {}, c_from_b_t = {};
    FRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Position at = fragment_c_element(x.lane(), i);
      c.value[i] = p.c[at.row * kN + at.column];
      c_from_b_t.value[i] = p.c_from_b_t[at.row * kN + at.column];
    }
    x.mma(c, fa, FragmentB<T>{{rows.word[0], rows.word[1]}});
    x.mma(c_from_b_t, fa, FragmentB<T>{{columns.word[0], columns.word[1]}});
    FRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Position at = fragment_c_element(x.lane(), i);
      p.c[at.row * kN + at.column] = c.value[i];
      p.c_from_b_t[at.row * kN + at.column] = c_from_b_t.value[i];
    }
  }
};

template <class T>
std::vector<T> narrowed(const std::vector<float>& values) {
  std::vector<T> result;
  for (const float value : values) result.push_back(narrow<T>(value));
  return result;
}

template <class T>
void check_product(const std::vector<float>& a, const std::vector<float>& b) {
  const std::vector<T> a16 = narrowed<T>(a), b16 = narrowed<T>(b);
  std::vector<float> c(kM * kN, 0.5f), c_from_b_t(kM * kN, 0.25f);
  launch<TileProduct<T>>(Stream{}, {1, 2 * (kM * kK + 2 * kK * kN)},
                         {a16.data(), b16.data(), c.data(), c_from_b_t.data()});
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; ++n) {
      float sum = 0;  // of whole numbers: exact
      for (int k = 0; k < kK; ++k)
        sum += a[static_cast<std::size_t>(m * kK + k)] * b[static_cast<std::size_t>(k * kN + n)];
      const auto at = static_cast<std::size_t>(m * kN + n);
      CHECK(c[at] == sum + 0.5f);
      CHECK(c_from_b_t[at] == sum + 0.25f);
    }
  }
}

// Every element of A with every one of B: a product with one element each names its two and no other.
template <class T>
void check_every_element() {
  const emulated::ScheduleScope scope({emulated::Policy::in_order, 0, false});
  for (std::size_t i = 0; i < kM * kK; ++i) {
    std::vector<float> a(kM * kK), b(kK * kN);
    a[i] = 3;
    for (std::size_t j = 0; j < b.size(); ++j) b[j] = static_cast<float>(j + 1);
    check_product<T>(a, b);
  }
  for (std::size_t i = 0; i < kK * kN; ++i) {
    std::vector<float> a(kM * kK), b(kK * kN);
    for (std::size_t j = 0; j < a.size(); ++j) a[j] = static_cast<float>(j % 251);
    b[i] = 3;
    check_product<T>(a, b);
  }
}

}  // namespace

TEST(mma_multiplies_bfloat16) { check_every_element<bfloat16_t>(); }
TEST(mma_multiplies_float16) { check_every_element<half_t>(); }

TEST(fragments_cover_their_matrices_once) {
  std::vector<int> a(kM * kK), b(kK * kN), c(kM * kN);
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const Position at = fragment_a_element(lane, i / 2, i % 2);
      ++a[static_cast<std::size_t>(at.row * kK + at.column)];
    }
    for (int i = 0; i < 4; ++i) {
      const Position in_b = fragment_b_element(lane, i / 2, i % 2), in_c = fragment_c_element(lane, i);
      ++b[static_cast<std::size_t>(in_b.row * kN + in_b.column)];
      ++c[static_cast<std::size_t>(in_c.row * kN + in_c.column)];
    }
  }
  for (const auto* matrix : {&a, &b, &c}) CHECK(*matrix == std::vector<int>(matrix->size(), 1));
}
