// Does the compiler take every call of the context, for every architecture?  Only compiled, never run.
#include <type_traits>

#include "cuda/fragment.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {

template <class T>
struct EveryPrimitive {
  static constexpr const char* kName = "every_primitive";
  static constexpr int kThreads = 128;
  struct Params {
    const T* in;
    float* out;
    double* wide;
    std::uint32_t* flag;
  };

  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    SharedLayout layout;
    const auto tile = x.view(layout.take<T>(kThreads * 8));
    const auto sums = x.view(layout.take<float>(kThreads));
    const auto barriers = x.view(layout.take<MBarrier>(2));
    const int first = x.thread() * 8;

    x.cp_async_16(tile.from(first), p.in + first);
    x.cp_async_commit();
    x.cp_async_wait(1);
    x.cp_async_16(tile.from(first), p.in + first, 8);
    x.cp_async_commit();
    x.cp_async_wait(0);
    x.sync();

    FragmentC c = {};
    const FragmentA<T> a = x.ldmatrix_x4(tile.from(first));
    const Matrices<T> b = x.ldmatrix_x4_trans(tile.from(first));
    x.mma(c, a, FragmentB<T>{{b.word[0], b.word[1]}});
    FRNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Position at = fragment_c_element(x.lane(), i);
      p.out[at.row * 8 + at.column] = c.value[i] + static_cast<float>(x.warp() + x.block() + x.blocks());
    }

    sums.store(x.thread(), x.shuffle_xor(c.value[0], 1) + x.shuffle_down(c.value[1], 2));
    x.sync_warp();
    p.wide[x.thread()] = x.shuffle(static_cast<double>(sums.load(x.thread() ^ 1)), 3);
    if (x.ballot(c.value[0] > 0) == 0) p.out[0] = static_cast<float>(fragment_a_element(1, 1, 1).row);
    if (x.warp() < 2) x.sync(1, 64);

    x.store_coherent(p.out + x.thread(), c.value[2]);
    x.store_coherent(p.wide + x.thread(), 1.0);
    x.store_coherent(reinterpret_cast<FragmentC*>(p.out), c);
    x.sync();
    if (x.thread() == 0) {
      if (x.fetch_add(p.flag, 0) == 0) x.add_release(p.flag, 1);
      x.wait_acquire(p.flag, static_cast<std::uint32_t>(x.blocks()));
    }
    x.sync();
    const T other = x.load_coherent(p.in + x.thread());
    tile.store(x.thread(), other);
    p.out[x.thread()] =
        x.load_coherent(p.out + x.thread()) + x.load_coherent(reinterpret_cast<FragmentC*>(p.out)).value[1];
    p.wide[x.thread()] = x.load_coherent(p.wide + x.thread());

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    {
      if (x.thread() == 0) {
        x.mbarrier_init(barriers, 1);
        x.mbarrier_init(barriers.from(1), kThreads);
        x.fence_mbarrier_init();
      }
      x.cluster_arrive();
      x.cluster_wait();
      const int peer = (x.cluster_rank() + 1) % x.cluster_size();
      const auto full = x.map_rank(barriers, peer);
      const auto there = x.map_rank(sums, peer);
      if (x.thread() == 0) x.mbarrier_arrive_expect_tx(barriers, 4 + 8 + 16 + 32);
      x.mbarrier_arrive(barriers.from(1));
      x.fence_proxy_async();
      if (x.thread() == 0) {
        x.st_async(there, 1.0f, full);
        x.st_async(there.from(2), 1.0, full);
        x.st_async(there.from(4), c, full);
        x.bulk_copy(there.from(8), sums.from(8), 32, full);
      }
      x.mbarrier_wait_parity(barriers, 0);
      x.mbarrier_wait_parity(barriers.from(1), 0);
      x.cluster_arrive();
      x.cluster_wait();
    }
#endif
  }
};

template void launch<EveryPrimitive<bfloat16_t>>(Stream, const Grid&,
                                                 const EveryPrimitive<bfloat16_t>::Params&);
template void launch<EveryPrimitive<half_t>>(Stream, const Grid&, const EveryPrimitive<half_t>::Params&);

}  // namespace fastrnn::cuda
