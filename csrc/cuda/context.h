// What a kernel body may ask of the machine, and what is common to its two contexts.
//
// A kernel is a struct; its body is written once, on a context x, and runs in two places: on a GPU, where x
// is a CudaContext (cuda_context.cuh) and every call below becomes an instruction or two, and on the CPU
// under the emulator of the tests (tests/emulator), where every thread is a fiber.
//
//   struct ScaleRows {
//     static constexpr const char* kName = "scale_rows";  // for error messages
//     static constexpr int kThreads = 256;                // of a CTA, always so many; a multiple of 32
//     struct Params { const float* in; float* out; Index n; };  // trivially copyable; global memory
//     template <class X>
//     static FRNN_DEVICE void run(const Params& p, X& x) {
//       const Index i = Index{x.block()} * kThreads + x.thread();
//       if (i < p.n) p.out[i] = 2 * p.in[i];
//     }
//   };
//
// The context.  A collective call must be reached by all the threads it concerns, at one place of the
// program. [90]: only in code for compute capability 9.0 and above; everything else compiles for 8.0.
//
//   Where am I
//     int thread(), lane(), warp()      in the CTA: lane = thread % 32, warp = thread / 32
//     int block(), blocks()             in the grid, which has one dimension
//     static constexpr bool kClusters      whether what is marked [90] may be called: ask by `if constexpr`
//     int cluster_rank(), cluster_size()    [90] of the CTA in its cluster: block() % cluster_size()
//
//   Shared memory: one block for each CTA, cut up by a SharedLayout that host and kernel compute alike.  It
//   holds garbage when the kernel starts, and is only seen through views.
//     Shared<T> view(Slot<T>)
//         has T load(int i), void store(int i, T), and Shared<T> from(int i), which begins at element i: for
//         the calls below that take a place
//
//   The threads of a CTA, the lanes of a warp: all collective
//     void sync()                       barrier of the CTA; orders shared and global memory among its threads
//     void sync(int id, int threads)    barrier `id`, from 1 to 15, of so many threads, in whole warps; each
//                                       warp may reach it at another place of the program
//     void sync_warp()                  barrier of the warp
//     T shuffle(T, int lane), shuffle_xor(T, int mask), shuffle_down(T, int delta)
//         T of 4 or 8 bytes, the numbers from 0 to 31
//     uint32_t ballot(bool)             bit l is lane l's
//
//   Tensor cores, for 16-bit T: collective in the warp; fragment.h says which lane holds what
//     Matrices<T> ldmatrix_x4(Shared<T> row), ldmatrix_x4_trans(Shared<T> row)
//         four 8x8 matrices; lane l names the start of row l % 8 of matrix l / 8, 16-byte aligned; trans:
//         each is transposed on its way
//     void mma(FragmentC&, FragmentA<T>, FragmentB<T>)
//         C [16,8] += A [16,16] B [16,8] in fp32
//
//   Copies from global to shared memory behind the thread's back
//     void cp_async_16(Shared<T> to, const T* from, int bytes = 16)
//         16 bytes, 16-byte aligned on both sides; after the first `bytes` of them, zeros
//     void cp_async_4(Shared<T> to, const T* from)
//         the same for one T of 4 bytes
//     void cp_async_commit()            what was issued since the last commit becomes a group
//     void cp_async_wait(int pending)   until at most so many groups of this thread are under way; a literal
//         from 0 to 7.  Other threads may read after a sync()
//
//   [90] Barriers in shared memory that count arrivals and bytes.  The first phase has parity 0, the next 1
//     void mbarrier_init(Shared<MBarrier>, int arrivals)
//         then fence_mbarrier_init(), and a barrier before others use it; nothing else is stored there
//     void mbarrier_arrive(Shared<MBarrier>)
//         after any thread has waited for the phase before
//     void mbarrier_arrive_expect_tx(Shared<MBarrier>, int bytes)
//         arrives, and makes the phase wait for so many more bytes, which may come earlier; less than 2^20 at
//         any time
//     void mbarrier_wait_parity(Shared<MBarrier>, int parity)
//         until the phase of that parity is complete, which is the current one or the one before it, and
//         before the next one is; a thread may not wait for the same phase twice.  Orders shared memory, not
//         global
//
//   [90] Clusters: CTAs that write into each other's shared memory
//     Remote<T> map_rank(Shared<T>, int rank)
//         the same place in that CTA; has from(int i); cannot be read
//     void st_async(Remote<T> to, V value, Remote<MBarrier>)
//         V of 4, 8 or 16 bytes, and so aligned; the barrier, in the same CTA, counts the bytes that arrived.
//         Undefined in a cluster of one CTA
//     void bulk_copy(Remote<T> to, Shared<T> from, int bytes, Remote<MBarrier>)
//         the same for a multiple of 16 bytes, 16-byte aligned; `from` stays as it is until they have
//         arrived, and those who wrote it call fence_proxy_async() before the sync()
//     void cluster_arrive(), cluster_wait()
//         collective, in the warp and in the cluster; a barrier of the cluster in two halves, release and
//         acquire; it does not wait for st_async and bulk_copy
//     void fence_mbarrier_init(), fence_proxy_async()
//
//   Other CTAs of the grid, which all run at once (Grid::cooperative) if any waits for another
//     T load_coherent(const T*)         what others have published; T of 2, 4, 8 or 16 bytes, and so aligned
//     void store_coherent(T*, T)        what others will load in that way
//     void add_release(uint32_t* flag, uint32_t n)
//         publishes what this thread has stored, and what others of its CTA had stored before the last sync()
//     uint32_t fetch_add(uint32_t* flag, uint32_t n)
//         the same, and acquires; returns what the flag was before
//     void wait_acquire(const uint32_t* flag, uint32_t at_least)
//         until the flag has that value or more; a sync() comes before others of the CTA load
//
// Rules.  Between a thread's access to shared memory and another's to the same place there is a barrier,
// unless both only read.  An ordinary load may give an old value where another CTA of the launch writes.  No
// thread returns while others of its CTA still wait for it at a barrier, and no CTA while others write to its
// memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

#ifdef __CUDACC__
#define FRNN_DEVICE __device__ __forceinline__
#else
#define FRNN_DEVICE inline
#endif

// Before a loop that has to be unrolled, so that the arrays it indexes stay in registers.
// FRNN_ROLLED: before one that must not be.
#ifdef __CUDACC__
#define FRNN_UNROLL _Pragma("unroll")
#define FRNN_ROLLED _Pragma("unroll 1")
#else
#define FRNN_UNROLL
#define FRNN_ROLLED
#endif

namespace fastrnn::cuda {

inline constexpr int kWarp = 32;

// `count` values of T that are loaded and stored in one piece.
template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
  T value[count];
};

// A barrier in shared memory; only the mbarrier calls touch it.
struct alignas(8) MBarrier {
  std::uint64_t state;
};

// Where `count` values of T lie in the shared memory of a CTA.
template <class T>
struct Slot {
  int offset = 0;  // in bytes
  int count = 0;
};

// Lays out shared memory, in the kernel and for the host that asks how much it needs:
//   SharedLayout layout;  const auto h = layout.take<float>(n);  ...  grid.shared = layout.bytes();
class SharedLayout {
 public:
  template <class T>
  FRNN_HOST_DEVICE constexpr Slot<T> take(int count) {
    const Slot<T> slot{bytes_, count};
    constexpr int unit = 16;  // what ldmatrix and the copies ask for
    bytes_ += ceil_div(count * static_cast<int>(sizeof(T)), unit) * unit;
    return slot;
  }
  FRNN_HOST_DEVICE constexpr int bytes() const { return bytes_; }

 private:
  int bytes_ = 0;
};

// Four 8x8 matrices of 16-bit values, spread over a warp: word[m] of a lane holds two neighbours of matrix m.
template <class T>
struct Matrices {
  std::uint32_t word[4];
};

// The operands of mma, one warp's share of each in every lane's registers (fragment.h).
template <class T>
using FragmentA = Matrices<T>;
template <class T>
struct FragmentB {
  std::uint32_t word[2];
};
struct FragmentC {
  float value[4];
};

}  // namespace fastrnn::cuda
