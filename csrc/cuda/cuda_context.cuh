// The context of a kernel on a GPU; context.h says what each call means.  The only file with inline assembly
// (its instructions: PTX ISA 8.6 and later) and with the built-in variables of CUDA.
#pragma once

#include <cstdio>
#include <cstring>
#include <type_traits>

#include "core/half.h"
#include "cuda/context.h"

namespace fastrnn::cuda {

class CudaContext {
 public:
  template <class T>
  class Shared {
   public:
    __device__ explicit Shared(T* at) : at_(at) {}
    __device__ T load(int i) const { return at_[i]; }
    __device__ void store(int i, T value) const { at_[i] = value; }
    __device__ Shared from(int i) const { return Shared(at_ + i); }

   private:
    friend CudaContext;
    // As the instructions want it: an offset into shared memory.
    __device__ unsigned address() const { return static_cast<unsigned>(__cvta_generic_to_shared(at_)); }
    T* at_;
  };

  template <class T>
  class Remote {
   public:
    __device__ Remote from(int i) const { return Remote(address_ + static_cast<unsigned>(i * sizeof(T))); }

   private:
    friend CudaContext;
    __device__ explicit Remote(unsigned address) : address_(address) {}
    unsigned address_;  // in the cluster's window
  };

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  static constexpr bool kClusters = true;
#else
  static constexpr bool kClusters = false;
#endif

  FRNN_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  FRNN_DEVICE int lane() const { return thread() % kWarp; }
  FRNN_DEVICE int warp() const { return thread() / kWarp; }
  FRNN_DEVICE int block() const { return static_cast<int>(blockIdx.x); }
  FRNN_DEVICE int blocks() const { return static_cast<int>(gridDim.x); }

  template <class T>
  FRNN_DEVICE Shared<T> view(Slot<T> slot) const {
    extern __shared__ __align__(128) unsigned char frnn_shared_memory[];
    return Shared<T>(reinterpret_cast<T*>(frnn_shared_memory + slot.offset));
  }

  FRNN_DEVICE void sync() const { __syncthreads(); }
  FRNN_DEVICE void sync(int id, int threads) const {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
  }
  FRNN_DEVICE void sync_warp() const { __syncwarp(); }
  template <class T>
  FRNN_DEVICE T shuffle(T value, int lane) const {
    return __shfl_sync(all_lanes, value, lane);
  }
  template <class T>
  FRNN_DEVICE T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(all_lanes, value, mask);
  }
  template <class T>
  FRNN_DEVICE T shuffle_down(T value, int delta) const {
    return __shfl_down_sync(all_lanes, value, static_cast<unsigned>(delta));
  }
  FRNN_DEVICE std::uint32_t ballot(bool b) const { return __ballot_sync(all_lanes, b); }

  template <class T>
  FRNN_DEVICE Matrices<T> ldmatrix_x4(Shared<T> row) const {
    Matrices<T> m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.word[0]), "=r"(m.word[1]), "=r"(m.word[2]), "=r"(m.word[3])
                 : "r"(row.address())
                 : "memory");
    return m;
  }
  template <class T>
  FRNN_DEVICE Matrices<T> ldmatrix_x4_trans(Shared<T> row) const {
    Matrices<T> m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.word[0]), "=r"(m.word[1]), "=r"(m.word[2]), "=r"(m.word[3])
                 : "r"(row.address())
                 : "memory");
    return m;
  }
  // Volatile, though it computes and no more: as a collective instruction it must stay where all lanes are.
  FRNN_DEVICE void mma(FragmentC& c, const FragmentA<bfloat16_t>& a, const FragmentB<bfloat16_t>& b) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
  }
  FRNN_DEVICE void mma(FragmentC& c, const FragmentA<half_t>& a, const FragmentB<half_t>& b) const {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
  }

  // .cg: by way of L2, so that what another CTA has published is seen.
  template <class T>
  FRNN_DEVICE void cp_async_16(Shared<T> to, const T* from, int bytes = 16) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address()), "l"(global(from)),
                 "r"(bytes)
                 : "memory");
  }
  template <class T>
  FRNN_DEVICE void cp_async_4(Shared<T> to, const T* from) const {
    static_assert(sizeof(T) == 4);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to.address()), "l"(global(from))
                 : "memory");
  }
  FRNN_DEVICE void cp_async_commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  FRNN_DEVICE void cp_async_wait(int pending) const {
    switch (pending) {  // the instruction takes a constant only; once inlined, one case is left
      case 1: return cp_async_wait_group<1>();
      case 2: return cp_async_wait_group<2>();
      case 3: return cp_async_wait_group<3>();
      case 4: return cp_async_wait_group<4>();
      case 5: return cp_async_wait_group<5>();
      case 6: return cp_async_wait_group<6>();
      case 7: return cp_async_wait_group<7>();
      default: return cp_async_wait_group<0>();
    }
  }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  FRNN_DEVICE int cluster_rank() const {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
  }
  FRNN_DEVICE int cluster_size() const {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return static_cast<int>(size);
  }

  FRNN_DEVICE void mbarrier_init(Shared<MBarrier> barrier, int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier.address()), "r"(arrivals)
                 : "memory");
  }
  FRNN_DEVICE void mbarrier_arrive(Shared<MBarrier> barrier) const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier.address()) : "memory");
  }
  FRNN_DEVICE void mbarrier_arrive_expect_tx(Shared<MBarrier> barrier, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier.address()), "r"(bytes)
                 : "memory");
  }
  // try_wait gives up after a while, hence the loop.  The fence acquires, for the cluster, shared memory
  // alone: try_wait.acquire.cluster is for all memory, and empties the L1 cache each time.
  FRNN_DEVICE void mbarrier_wait_parity(Shared<MBarrier> barrier, int parity) const {
    unsigned complete;
    Patience patience;
    do {
      patience.check("mbarrier_wait_parity");
      asm volatile(
          "{\n"
          "  .reg .pred p;\n"
          "  mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 p, [%1], %2;\n"
          "  selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(complete)
          : "r"(barrier.address()), "r"(parity)
          : "memory");
    } while (!complete);
    asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
  }

  template <class T>
  FRNN_DEVICE Remote<T> map_rank(Shared<T> place, int rank) const {
    unsigned address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(place.address()), "r"(rank));
    return Remote<T>(address);
  }
  template <class T, class V>
  FRNN_DEVICE void st_async(Remote<T> to, V value, Remote<MBarrier> barrier) const {
    const auto word = words<V>(value);
    if constexpr (sizeof(V) == 4) {
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to.address_),
          "r"(word.value[0]), "r"(barrier.address_)
          : "memory");
    } else if constexpr (sizeof(V) == 8) {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                       to.address_),
                   "r"(word.value[0]), "r"(word.value[1]), "r"(barrier.address_)
                   : "memory");
    } else {
      static_assert(sizeof(V) == 16, "st_async stores 4, 8 or 16 bytes");
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
              to.address_),
          "r"(word.value[0]), "r"(word.value[1]), "r"(word.value[2]), "r"(word.value[3]),
          "r"(barrier.address_)
          : "memory");
    }
  }
  template <class T>
  FRNN_DEVICE void bulk_copy(Remote<T> to, Shared<T> from, int bytes, Remote<MBarrier> barrier) const {
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            to.address_),
        "r"(from.address()), "r"(bytes), "r"(barrier.address_)
        : "memory");
  }
  FRNN_DEVICE void cluster_arrive() const {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  }
  FRNN_DEVICE void cluster_wait() const {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
  FRNN_DEVICE void fence_mbarrier_init() const {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  FRNN_DEVICE void fence_proxy_async() const { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

  template <class T>
  FRNN_DEVICE T load_coherent(const T* from) const {
    T value;
    if constexpr (sizeof(T) == 2) {
      std::uint16_t bits;
      asm volatile("ld.relaxed.gpu.global.b16 %0, [%1];" : "=h"(bits) : "l"(global(from)) : "memory");
      memcpy(&value, &bits, sizeof(T));
    } else {
      Words<T> word;
      if constexpr (sizeof(T) == 4) {
        asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];"
                     : "=r"(word.value[0])
                     : "l"(global(from))
                     : "memory");
      } else if constexpr (sizeof(T) == 8) {
        asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
                     : "=r"(word.value[0]), "=r"(word.value[1])
                     : "l"(global(from))
                     : "memory");
      } else {
        static_assert(sizeof(T) == 16, "load_coherent loads 2, 4, 8 or 16 bytes");
        asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word.value[0]), "=r"(word.value[1]), "=r"(word.value[2]), "=r"(word.value[3])
                     : "l"(global(from))
                     : "memory");
      }
      memcpy(&value, &word, sizeof(T));
    }
    return value;
  }
  template <class T>
  FRNN_DEVICE void store_coherent(T* to, T value) const {
    if constexpr (sizeof(T) == 2) {
      std::uint16_t bits;
      memcpy(&bits, &value, sizeof(T));
      asm volatile("st.relaxed.gpu.global.b16 [%0], %1;" ::"l"(global(to)), "h"(bits) : "memory");
    } else {
      const auto word = words<T>(value);
      if constexpr (sizeof(T) == 4) {
        asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(global(to)), "r"(word.value[0]) : "memory");
      } else if constexpr (sizeof(T) == 8) {
        asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(global(to)), "r"(word.value[0]),
                     "r"(word.value[1])
                     : "memory");
      } else {
        static_assert(sizeof(T) == 16, "store_coherent stores 2, 4, 8 or 16 bytes");
        asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(global(to)),
                     "r"(word.value[0]), "r"(word.value[1]), "r"(word.value[2]), "r"(word.value[3])
                     : "memory");
      }
    }
  }
  FRNN_DEVICE void add_release(std::uint32_t* flag, std::uint32_t n) const {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(global(flag)), "r"(n) : "memory");
  }
  FRNN_DEVICE std::uint32_t fetch_add(std::uint32_t* flag, std::uint32_t n) const {
    std::uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(global(flag)), "r"(n)
                 : "memory");
    return before;
  }
  FRNN_DEVICE void wait_acquire(const std::uint32_t* flag, std::uint32_t at_least) const {
    std::uint32_t seen;
    Patience patience;
    do {
      patience.check("wait_acquire");
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(global(flag)) : "memory");
    } while (seen < at_least);
  }

 private:
  static constexpr unsigned all_lanes = 0xffffffffu;

  // In debug builds a wait of many seconds ends the kernel, with a word of where, instead of hanging.
  class Patience {
#ifdef FRNN_BOUNDED_WAITS
   public:
    FRNN_DEVICE Patience() : begin_(now()) {}
    FRNN_DEVICE void check(const char* call) const {
      if (now() - begin_ < kMost) return;
      printf("fastrnn: thread %d of CTA %d waits in vain in %s\n", static_cast<int>(threadIdx.x),
             static_cast<int>(blockIdx.x), call);
      asm volatile("trap;");
    }

   private:
    static FRNN_DEVICE long long now() {
      long long clocks;
      asm volatile("mov.u64 %0, %%clock64;" : "=l"(clocks));
      return clocks;
    }
    static constexpr long long kMost = 1LL << 34;  // clocks, some 10 s
    long long begin_;
#else
   public:
    FRNN_DEVICE void check(const char*) const {}
#endif
  };

  // The 32-bit registers that a value travels in.
  template <class V>
  struct Words {
    std::uint32_t value[sizeof(V) / 4];
  };
  template <class V>
  static FRNN_DEVICE Words<V> words(const V& value) {
    static_assert(std::is_trivially_copyable_v<V> && sizeof(V) % 4 == 0);
    Words<V> w;
    memcpy(&w, &value, sizeof(V));
    return w;
  }
  static FRNN_DEVICE std::size_t global(const void* p) { return __cvta_generic_to_global(p); }
  template <int pending>
  static FRNN_DEVICE void cp_async_wait_group() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
  }
};

}  // namespace fastrnn::cuda
