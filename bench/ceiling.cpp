// The most float32 multiply-adds a second that one core of this machine does: GFLOP/s, the best of some short
// runs. bench/run.py compiles it for the machine it runs on; what it prints is the 100 % of its table.
#include <chrono>
#include <cstdio>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

int main() {
  constexpr int chains = kBytes == 64 ? 24 : 12;  // more than latency times units, fewer than registers
  constexpr long repeats = 4000000;
  Vector sum[chains], factor = Vector{} + 0.999f, term = Vector{} + 1e-4f;
  for (Vector& s : sum) s = Vector{} + 1e-3f;
  double best = 0;
  for (int run = 0; run < 10; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (long i = 0; i < repeats; ++i) {
#pragma GCC unroll 24
      for (int j = 0; j < chains; ++j) sum[j] = sum[j] * factor + term;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double rate = 2.0 * repeats * chains * (kBytes / 4) / seconds / 1e9;
    best = rate > best ? rate : best;
  }
  float keep = 0;
  for (Vector& s : sum) keep += s[0];
  std::printf("%.1f\n", keep < 1e30f ? best : 0);
}
