#include "ops/arrays.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "ops/network.h"

namespace fastrnn {

template <class T>
void update(const std::vector<cpu::Update<T>>& arrays) {
  // Elements of 20 us on one thread, which a second one is worth waking for.
  constexpr Index kShare = Index{1} << 16;
  // A thread's part of an array begins with a cache line if the array does.
  constexpr Index kLine = 64 / sizeof(T);
  const cpu::Kernels<T>& kernels = current_kernels<T>();
  Index total = 0;
  for (const cpu::Update<T>& array : arrays) total += array.last - array.first;
  cpu::Team team(static_cast<int>(std::clamp<Index>(total / kShare, 1, cpu::max_threads)));
  team.run([&](int tid) {
    for (cpu::Update<T> part : arrays) {
      const Index lines = (part.last - part.first + kLine - 1) / kLine;
      const auto edge = [&](int i) {
        return std::min(part.first + lines * i / team.size() * kLine, part.last);
      };
      const Index first = edge(tid), last = edge(tid + 1);
      part.first = first;
      part.last = last;
      kernels.update(part);
    }
  });
}

template <class T>
double sum_of_squares(const T* values, Index count) {
  return current_kernels<T>().sum_of_squares(values, count);
}

template <class T>
void scale(T* values, Index count, double factor) {
  current_kernels<T>().scale(values, count, static_cast<T>(factor));
}

#define FRNN_INSTANTIATE(T)                                 \
  template void update(const std::vector<cpu::Update<T>>&); \
  template double sum_of_squares(const T*, Index);          \
  template void scale(T*, Index, double);
FRNN_INSTANTIATE(float)
FRNN_INSTANTIATE(double)
#undef FRNN_INSTANTIATE

}  // namespace fastrnn
