// ceiling THREADS [L1 L2 L3]: what this machine can do at best, on as many threads, each on a CPU of its own:
// multiply-adds a second for each element type, and bytes a second read from each cache (sizes in bytes) and
// from memory. Prints JSON. The best of some short runs, because whatever disturbs a run makes it slower.
// ceiling.py compiles it for the machine it runs on.
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kChains = kBytes == 64 ? 24 : 12;  // more than latency times units, fewer than registers
typedef float Floats __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));

using Clock = std::chrono::steady_clock;

volatile double sink;  // what makes the results count

void pin(int thread) {
  cpu_set_t allowed, one;
  CPU_ZERO(&one);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && thread-- == 0) CPU_SET(cpu, &one);
  pthread_setaffinity_np(pthread_self(), sizeof one, &one);  // without effect where there are too few
}

// Seconds of the best of some runs of `work(thread)` on all threads at once, from the first start to the last
// end; `prepare(thread)` goes before, on the same CPU.
double best_seconds(
    int threads, int runs, const std::function<void(int)>& work,
    const std::function<void(int)>& prepare = [](int) {}) {
  double best = 1e30;
  for (int run = 0; run < runs; ++run) {
    std::atomic<int> ready{0};
    std::vector<Clock::time_point> start(threads), end(threads);
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i)
      team.emplace_back([&, i] {
        pin(i);
        prepare(i);
        ++ready;
        while (ready < threads) std::this_thread::yield();
        start[i] = Clock::now();
        work(i);
        end[i] = Clock::now();
      });
    for (std::thread& thread : team) thread.join();
    const auto first = *std::min_element(start.begin(), start.end());
    const auto last = *std::max_element(end.begin(), end.end());
    best = std::min(best, std::chrono::duration<double>(last - first).count());
  }
  return best;
}

template <class Vector>
double gflops(int threads) {
  constexpr long repeats = 1000000;
  constexpr int lanes = kBytes / int{sizeof(Vector{}[0])};
  const double seconds = best_seconds(threads, 12, [](int) {
    Vector sum[kChains], factor = Vector{} + 0.999f, term = Vector{} + 1e-4f;
    for (Vector& s : sum) s = Vector{} + 1e-3f;
    for (long i = 0; i < repeats; ++i) {
#pragma GCC unroll 24
      for (int j = 0; j < kChains; ++j) sum[j] = sum[j] * factor + term;
    }
    double total = 0;
    for (Vector& s : sum) total += s[0];
    sink = total;
  });
  return 2.0 * repeats * kChains * lanes * threads / seconds / 1e9;
}

#if defined(__AVX512BF16__)
double gflops_bfloat16(int threads) {
  constexpr long repeats = 1000000;
  const double seconds = best_seconds(threads, 12, [](int) {
    __m512 sum[kChains];
    for (__m512& s : sum) s = _mm512_set1_ps(1e-3f);
    const __m512bh factor = _mm512_cvtne2ps_pbh(sum[0], sum[0]);
    for (long i = 0; i < repeats; ++i) {
#pragma GCC unroll 24
      for (int j = 0; j < kChains; ++j) sum[j] = _mm512_dpbf16_ps(sum[j], factor, factor);
    }
    double total = 0;
    for (__m512& s : sum) total += _mm512_cvtss_f32(s);
    sink = total;
  });
  return 4.0 * repeats * kChains * 16 * threads / seconds / 1e9;  // two products and two sums a lane
}
#endif

// Reads `bytes` of its own in each thread, again and again. The thread is the first to touch them, so that
// they lie in the memory that is nearest to it.
double gb_per_second(int threads, long bytes) {
  constexpr int chains = 16;
  const long blocks = std::max(1L, bytes / (kBytes * chains));
  const long repeats = std::max(1L, (1L << 28) / (blocks * kBytes * chains));
  std::vector<Floats*> data(threads);
  const auto touch = [&](int thread) {
    if (data[thread]) return;
    const long whole = (blocks * kBytes * chains + 4095) / 4096 * 4096;
    data[thread] = static_cast<Floats*>(std::aligned_alloc(4096, whole));
    std::fill(data[thread], data[thread] + blocks * chains, Floats{});
  };
  const auto read = [&](int thread) {
    Floats sum[chains] = {};
    for (long i = 0; i < repeats; ++i) {
      const Floats* from = data[thread];
      for (long b = 0; b < blocks; ++b, from += chains) {
#pragma GCC unroll 16
        for (int j = 0; j < chains; ++j) sum[j] += from[j];
      }
      asm volatile("" ::: "memory");  // or the compiler reads once for all repeats
    }
    double total = 0;
    for (Floats& s : sum) total += s[0];
    sink = total;
  };
  const double seconds = best_seconds(threads, 6, read, touch);
  for (Floats* block : data) std::free(block);
  return 1e-9 * static_cast<double>(repeats * blocks * kBytes * chains) * threads / seconds;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  std::printf("{\"gflops\": {\"float32\": %.1f, \"float64\": %.1f", gflops<Floats>(threads),
              gflops<Doubles>(threads));
#if defined(__AVX512BF16__)
  std::printf(", \"bfloat16\": %.1f", gflops_bfloat16(threads));
#endif
  // Threads have an L1 and an L2 of their own, and share what is beyond. Half of a cache is read, to stay
  // inside.
  std::printf("}, \"read\": {");
  long last = 0;
  for (int level = 1; level <= 3 && level + 1 < argc; ++level) {
    last = std::atol(argv[level + 1]);
    const long shared_by = level == 3 ? threads : 1;
    std::printf("\"L%d\": {\"bytes\": %ld, \"gb_s\": %.1f}, ", level, last * threads / shared_by,
                gb_per_second(threads, last / 2 / shared_by));
  }
  const long beyond = std::min(std::max(4 * last, 1L << 26), 1L << 29);
  std::printf("\"memory\": {\"bytes\": null, \"gb_s\": %.1f}}}\n", gb_per_second(threads, beyond / threads));
}
