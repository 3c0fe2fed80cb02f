// Measures what decides how a persistent recurrent kernel has to be built on this GPU.
//
//     nvcc -O3 -std=c++17 -arch=sm_90 -o gpu_probe scripts/gpu_probe.cu
//     ./gpu_probe [--out FILE] [PART ...]
//
// Parts, all by default:
//   limits   the device, and how many clusters of P CTAs run at once at a given amount of shared memory
//   latency  one message to another CTA of the cluster and back; one barrier of the whole cluster
//   gather   every CTA of a cluster sends its slice of h to all others, each step, in all clusters at once
//   grid     the same exchange through global memory over the whole grid, with four ways to synchronise
//   mma      a product whose weights stay in registers: multiplications per clock
//
// Every row is checked before it is printed: each kernel carries data whose result is known. A row that fails
// holds "error" and no figures. One JSON document goes to stdout or FILE, tables to stderr.
// Exit status: 0 all parts done, 1 a part failed, 2 no CUDA device.
//
// A part runs in a process of its own, which the first process ends after kPartSeconds, so neither a hang nor
// a device error reaches the others. Loops that wait in a kernel give up after kSpinClocks and say so.

#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int kPartSeconds = 12;
constexpr long long kSpinClocks = 1LL << 27;  // about 0.07 s
constexpr int kThreads = 256;
constexpr int kRepeats = 5;  // of each timed launch; the median counts

// ---------------------------------------------------------------- errors and memory

struct NoDevice : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// What this device or this build does not have: a part left out, not a failure.
struct Unavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(cudaError_t status, const char* call, int line) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + ", line " + std::to_string(line) + ": " +
                           cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}
#define CHECK(call) check((call), #call, __LINE__)

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) { CHECK(cudaMalloc(&data_, count * sizeof(T))); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    CHECK(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return data_; }
  void fill_bytes(int byte) { CHECK(cudaMemset(data_, byte, count_ * sizeof(T))); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    CHECK(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

// What a kernel found wrong, counted over all threads.
struct Faults {
  unsigned timeouts;
  unsigned mismatches;
};

std::string describe(const Faults& faults) {
  if (faults.timeouts != 0) return std::to_string(faults.timeouts) + " threads waited in vain";
  if (faults.mismatches != 0) return std::to_string(faults.mismatches) + " wrong words";
  return "";
}

template <class T>
T median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// ---------------------------------------------------------------- output: one line of JSON per row, and a
// table

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

class Row {
 public:
  Row& add(const char* name, const std::string& text) { return put(name, quoted(text)); }
  Row& add(const char* name, const char* text) { return put(name, quoted(text)); }
  Row& add(const char* name, long long number) { return put(name, std::to_string(number)); }
  Row& add(const char* name, int number) { return put(name, std::to_string(number)); }
  Row& add(const char* name, double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.5g", number);
    return put(name, text);
  }

  std::string json() const {
    std::string out = "{";
    for (const auto& [name, value] : fields_) {
      out += (out.size() > 1 ? ", " : "") + quoted(name) + ": " + value;
    }
    return out + "}";
  }
  std::string names() const {
    return line([](const auto& field) { return field.first; });
  }
  std::string values() const {
    return line([](const auto& field) { return field.second; });
  }

 private:
  using Field = std::pair<std::string, std::string>;

  Row& put(const char* name, std::string value) {
    fields_.emplace_back(name, std::move(value));
    return *this;
  }
  std::string line(const std::function<std::string(const Field&)>& part) const {
    std::string out;
    for (const Field& field : fields_) {
      const std::size_t width = std::max(field.first.size(), std::size_t{8});
      const std::string text = part(field);
      out += "  " + std::string(width > text.size() ? width - text.size() : 0, ' ') + text;
    }
    return out;
  }

  std::vector<Field> fields_;
};

// Writes what a part finds to the process that started it: "device JSON", "row JSON" or "error TEXT" a line.
class Report {
 public:
  explicit Report(FILE* out) : out_(out) {}

  void device(const Row& row) { send("device", row.json()); }
  void row(const Row& row) {
    send("row", row.json());
    if (row.names() != names_) {
      names_ = row.names();
      std::fprintf(stderr, "%s\n", names_.c_str());
    }
    std::fprintf(stderr, "%s\n", row.values().c_str());
  }
  void error(const std::string& text) { send("error", quoted(text)); }
  // A row that may hold no figures, because its data were wrong.
  void failed_row(Row row, const std::string& fault) {
    this->row(row.add("error", fault));
    failed_ = true;
  }
  bool failed() const { return failed_; }

 private:
  void send(const char* kind, const std::string& text) {
    std::fprintf(out_, "%s %s\n", kind, text.c_str());
    std::fflush(out_);
  }

  FILE* out_;
  std::string names_;
  bool failed_ = false;
};

// ---------------------------------------------------------------- launching and timing

struct Shape {
  int ctas;
  int cluster = 1;
  int shared_bytes = 0;
  bool cooperative = false;
};

struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};

  explicit Launch(const Shape& shape) {
    config.gridDim = dim3(static_cast<unsigned>(shape.ctas));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
    config.attrs = attributes;
    if (shape.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (shape.cooperative) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  Launch(const Launch&) = delete;  // config points into this object
  Launch& operator=(const Launch&) = delete;
};

template <class Kernel>
void allow(Kernel kernel, const Shape& shape) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes));
  if (shape.cluster > 8) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
}

// Launches once and waits; returns nanoseconds between events around the kernel.
template <class... Params>
double timed_launch(void (*kernel)(Params...), const Shape& shape, Params... params) {
  const Launch launch(shape);
  cudaEvent_t start;
  cudaEvent_t stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  CHECK(cudaEventRecord(start));
  CHECK(cudaLaunchKernelEx(&launch.config, kernel, params...));
  CHECK(cudaGetLastError());
  CHECK(cudaEventRecord(stop));
  CHECK(cudaDeviceSynchronize());
  float milliseconds = 0;
  CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(stop));
  return 1e6 * static_cast<double>(milliseconds);
}

int attribute(cudaDeviceAttr name) {
  int value = 0;
  CHECK(cudaDeviceGetAttribute(&value, name, 0));
  return value;
}
int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
int largest_shared() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

template <class Kernel>
int most_clusters(Kernel kernel, const Shape& shape) {
  allow(kernel, shape);
  const Launch launch(shape);
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config);
  if (status == cudaErrorInvalidClusterSize) {
    cudaGetLastError();  // the answer is none; it shall not be taken for an error of the next call
    return 0;
  }
  CHECK(status);
  return clusters;
}

// ---------------------------------------------------------------- PTX

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAS_CLUSTERS 1
#else
#define HAS_CLUSTERS 0
#endif

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ unsigned load_acquire(const unsigned* pointer) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
  return value;
}

__device__ void add_release(unsigned* pointer, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(pointer), "r"(value) : "memory");
}

#if HAS_CLUSTERS

__device__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all CTAs of the cluster, in converged code.
__device__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// The same place of shared memory in another CTA of the cluster.
__device__ uint32_t map_rank(uint32_t address, unsigned rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

__device__ void barrier_init(uint32_t barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Before the cluster barrier after which peers may use the barriers initialised here.
__device__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ void arrive_expect(uint32_t barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Acquires, as the kernels do, shared memory alone: for all memory it would empty the L1 cache as well.
__device__ bool try_wait(uint32_t barrier, unsigned parity) {
  unsigned done;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  if (done != 0) asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
  return done != 0;
}

__device__ void send_word(uint32_t remote, unsigned value, uint32_t remote_barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(remote),
               "r"(value), "r"(remote_barrier)
               : "memory");
}

__device__ void send_16_bytes(uint32_t remote, uint4 value, uint32_t remote_barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          remote),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(remote_barrier)
      : "memory");
}

__device__ void send_bulk(uint32_t remote, uint32_t local, unsigned bytes, uint32_t remote_barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          remote),
      "r"(local), "r"(bytes), "r"(remote_barrier)
      : "memory");
}

// Ordinary stores to shared memory before it are seen by bulk copies after it.
__device__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif  // HAS_CLUSTERS

// ---------------------------------------------------------------- waiting

// Waits of one thread. After the first that was in vain the others return at once, so that the kernel ends.
class Waiter {
 public:
  __device__ explicit Waiter(Faults* faults) : faults_(faults) {}

  template <class Ready>
  __device__ void until(Ready ready) {
    if (gave_up_ || ready()) return;
    const long long start = clock64();
    while (!ready()) {
      if (clock64() - start > kSpinClocks) {
        gave_up_ = true;
        atomicAdd(&faults_->timeouts, 1U);
        return;
      }
    }
  }

 private:
  Faults* faults_;
  bool gave_up_ = false;
};

// Brings the clocks up: a GPU that was idle takes a while.
__global__ void busy_kernel() {
  const long long start = clock64();
  while (clock64() - start < kSpinClocks) {
  }
}

void warm_up() { timed_launch(busy_kernel, Shape{multiprocessors()}); }

// ---------------------------------------------------------------- data whose arrival can be checked

// Word w of what `source` sends in a step is stamp(...) + w.
__host__ __device__ constexpr uint32_t stamp(uint32_t step, uint32_t source, uint32_t salt) {
  uint32_t x = (step + 1) * 0x9E3779B1U ^ (source + 1) * 0x85EBCA77U ^ (salt + 1) * 0xC2B2AE3DU;
  x ^= x >> 15;
  x *= 0x2C1B3C6DU;
  return x ^ x >> 13;
}

__device__ uint4 piece_of(uint32_t first_word) {
  return make_uint4(first_word, first_word + 1, first_word + 2, first_word + 3);
}

// ================================================================ limits

// Every CTA reports and waits until all have: they are resident together or this times out.
__global__ void __launch_bounds__(kThreads, 1)
    resident_kernel(unsigned* arrived, unsigned* multiprocessor, Faults* faults) {
  if (threadIdx.x != 0) return;
  unsigned where;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(where));
  multiprocessor[blockIdx.x] = where;
  add_release(arrived, 1);
  Waiter(faults).until([=] { return load_acquire(arrived) >= gridDim.x; });
}

Row device_row() {
  cudaDeviceProp properties{};
  CHECK(cudaGetDeviceProperties(&properties, 0));
  int driver = 0;
  int runtime = 0;
  CHECK(cudaDriverGetVersion(&driver));
  CHECK(cudaRuntimeGetVersion(&runtime));
  cudaFuncAttributes compiled{};
  CHECK(cudaFuncGetAttributes(&compiled, resident_kernel));
  return Row()
      .add("name", properties.name)
      .add("compute_capability", std::to_string(properties.major) + "." + std::to_string(properties.minor))
      .add("code", compiled.binaryVersion)
      .add("driver", driver)
      .add("runtime", runtime)
      .add("multiprocessors", properties.multiProcessorCount)
      .add("clock_mhz", attribute(cudaDevAttrClockRate) / 1000)
      .add("memory_mb", static_cast<long long>(properties.totalGlobalMem >> 20))
      .add("l2_kb", properties.l2CacheSize / 1024)
      .add("shared_kb_per_multiprocessor", attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / 1024)
      .add("shared_bytes_per_cta", largest_shared())
      .add("registers_per_multiprocessor", properties.regsPerMultiprocessor)
      .add("cooperative_launch", attribute(cudaDevAttrCooperativeLaunch))
      .add("cluster_launch", attribute(cudaDevAttrClusterLaunch));
}

// Cluster kernels have a body only if they were compiled for compute capability 9.0 or later.
void require_clusters() {
  cudaFuncAttributes compiled{};
  CHECK(cudaFuncGetAttributes(&compiled, resident_kernel));
  if (attribute(cudaDevAttrClusterLaunch) == 0) throw Unavailable("this device has no clusters");
  if (std::min(compiled.ptxVersion, compiled.binaryVersion) < 90) {
    throw Unavailable("built for an architecture without clusters: build with -arch=sm_90 or later");
  }
}

void run_limits(Report& report) {
  require_clusters();
  for (const int kilobytes : {100, 200, 227}) {
    for (const int cluster : {2, 4, 8, 16}) {
      const int shared = std::min(kilobytes * 1024, largest_shared());
      Row row;
      row.add("cluster", cluster).add("shared_kb", shared / 1024);
      const Shape unlaunched{cluster, cluster, shared};
      const int clusters = most_clusters(resident_kernel, unlaunched);
      if (clusters == 0) {
        report.row(row.add("clusters", 0));
        continue;
      }
      const Shape shape{cluster * clusters, cluster, shared};
      DeviceArray<unsigned> arrived(1);
      DeviceArray<unsigned> where(static_cast<std::size_t>(shape.ctas));
      DeviceArray<Faults> faults(1);
      arrived.fill_bytes(0);
      faults.fill_bytes(0);
      timed_launch(resident_kernel, shape, arrived.get(), where.get(), faults.get());
      const std::string fault = describe(faults.read()[0]);
      if (!fault.empty()) {
        report.failed_row(row.add("clusters", clusters), "not resident together: " + fault);
        continue;
      }
      std::vector<unsigned> used = where.read();
      std::sort(used.begin(), used.end());
      const auto distinct = std::unique(used.begin(), used.end()) - used.begin();
      report.row(row.add("clusters", clusters)
                     .add("ctas", shape.ctas)
                     .add("multiprocessors_used", static_cast<long long>(distinct)));
    }
  }
}

// ================================================================ latency

// Rank 0 and `peer` pass a counter to and fro. Each value is the last one plus one, so a message that is
// lost, early or doubled shows in the end. One mailbox is enough: who sends has read the answer before. A
// message may come before its phase is armed: the phase cannot end while the arrival of the arming thread is
// missing.
__global__ void __launch_bounds__(kThreads, 1)
    ping_pong_kernel(unsigned peer, unsigned rounds, long long* clocks, Faults* faults) {
#if HAS_CLUSTERS
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t full = shared_address(shared);
  volatile unsigned* mailbox = reinterpret_cast<unsigned*>(shared + 16);
  const unsigned rank = cluster_rank();
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    fence_barrier_init();
  }
  __syncthreads();
  cluster_barrier();
  if (threadIdx.x == 0 && (rank == 0 || rank == peer)) {
    const unsigned other = rank == 0 ? peer : 0;
    const uint32_t remote_mailbox = map_rank(full + 16, other);
    const uint32_t remote_full = map_rank(full, other);
    Waiter waiter(faults);
    unsigned value = 0;
    const long long start = clock64();
    for (unsigned round = 0; round < rounds; ++round) {
      arrive_expect(full, 4);
      if (rank == 0) send_word(remote_mailbox, value + 1, remote_full);
      waiter.until([=] { return try_wait(full, round & 1); });
      value = *mailbox;
      if (rank != 0) send_word(remote_mailbox, value + 1, remote_full);
    }
    if (rank == 0) clocks[0] = clock64() - start;
    if (value != 2 * rounds - (rank == 0 ? 0 : 1)) atomicAdd(&faults->mismatches, 1U);
  }
  __syncthreads();
  cluster_barrier();  // no CTA leaves while a peer may still write to it
#endif
}

// `checked` rounds in which each CTA finds the round's number written by its neighbour, then `rounds` bare
// ones.
__global__ void __launch_bounds__(kThreads, 1)
    cluster_barrier_kernel(unsigned size, unsigned checked, unsigned rounds, long long* clocks,
                           Faults* faults) {
#if HAS_CLUSTERS
  extern __shared__ __align__(128) unsigned char shared[];
  volatile unsigned* mailbox = reinterpret_cast<unsigned*>(shared);
  const unsigned rank = cluster_rank();
  const uint32_t neighbour = map_rank(shared_address(shared), (rank + 1) % size);
  cluster_barrier();  // all CTAs run before the first write to a neighbour
  for (unsigned round = 0; round < checked; ++round) {
    if (threadIdx.x == 0) {
      asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(neighbour), "r"(round + 7) : "memory");
    }
    __syncwarp();
    cluster_barrier();
    if (*mailbox != round + 7) atomicAdd(&faults->mismatches, 1U);
    __syncwarp();
    cluster_barrier();
  }
  const long long start = clock64();
  for (unsigned round = 0; round < rounds; ++round) cluster_barrier();
  if (threadIdx.x == 0 && rank == 0) clocks[blockIdx.x / size] = clock64() - start;
#endif
}

void run_latency(Report& report) {
  require_clusters();
  constexpr unsigned kRounds = 2000;
  DeviceArray<Faults> faults(1);
  for (const int cluster : {2, 4, 8, 16}) {
    Row row;
    row.add("message", "there and back / 2").add("cluster", cluster).add("clusters", 1);
    const Shape shape{cluster, cluster, largest_shared()};
    if (most_clusters(ping_pong_kernel, shape) == 0) continue;
    DeviceArray<long long> clocks(1);
    std::vector<double> one_way;  // clocks, one value per peer
    std::vector<double> nanoseconds;
    std::string fault;
    for (int peer = 1; peer < cluster && fault.empty(); ++peer) {
      std::vector<double> runs;
      for (int repeat = 0; repeat < kRepeats && fault.empty(); ++repeat) {
        faults.fill_bytes(0);
        clocks.fill_bytes(0);
        nanoseconds.push_back(timed_launch(ping_pong_kernel, shape, static_cast<unsigned>(peer), kRounds,
                                           clocks.get(), faults.get()) /
                              (2.0 * kRounds));
        runs.push_back(static_cast<double>(clocks.read()[0]) / (2.0 * kRounds));
        fault = describe(faults.read()[0]);
      }
      one_way.push_back(median(runs));
    }
    if (!fault.empty()) {
      report.failed_row(row, fault);
      continue;
    }
    report.row(row.add("clocks", median(one_way))
                   .add("nearest", *std::min_element(one_way.begin(), one_way.end()))
                   .add("farthest", *std::max_element(one_way.begin(), one_way.end()))
                   .add("ns", median(nanoseconds)));
  }
  for (const int cluster : {2, 4, 8, 16}) {
    const Shape one{cluster, cluster, largest_shared()};
    const int most = most_clusters(cluster_barrier_kernel, one);
    if (most == 0) continue;
    for (const int clusters : {1, most}) {
      Row row;
      row.add("message", "barrier.cluster").add("cluster", cluster).add("clusters", clusters);
      const Shape shape{cluster * clusters, cluster, one.shared_bytes};
      DeviceArray<long long> clocks(static_cast<std::size_t>(clusters));
      std::vector<double> runs;
      std::vector<double> nanoseconds;
      std::string fault;
      for (int repeat = 0; repeat < kRepeats && fault.empty(); ++repeat) {
        constexpr unsigned kChecked = 50;
        faults.fill_bytes(0);
        nanoseconds.push_back(timed_launch(cluster_barrier_kernel, shape, static_cast<unsigned>(cluster),
                                           kChecked, kRounds, clocks.get(), faults.get()) /
                              (kRounds + 2.0 * kChecked));
        runs.push_back(static_cast<double>(median(clocks.read())) / kRounds);
        fault = describe(faults.read()[0]);
      }
      if (!fault.empty()) {
        report.failed_row(row, fault);
        continue;
      }
      report.row(row.add("clocks", median(runs)).add("ns", median(nanoseconds)));
    }
  }
}

// ================================================================ gather

struct Gather {
  unsigned cluster;
  unsigned slice_bytes;  // what one CTA contributes to h: a power of two, at least 16
  unsigned log2_pieces;  // of 16 bytes each
  unsigned steps;
  unsigned check_every_step;
  unsigned salt;
  long long* clocks;  // [clusters]
  Faults* faults;
};

constexpr unsigned kGatherHeader = 128;  // two barriers, then h[2][cluster][slice_bytes]

// The step of a persistent kernel without its arithmetic: wait for h_t, read it, send one's slice of h_{t+1}.
//
// Two buffers of h, one barrier each. h_t lies in buffer t & 1; its barrier's phase is number (t - 1) >> 1.
// Two are enough: a peer sends h_{t+2}, which overwrites h_t, only after it has received our h_{t+1}, and
// that we send after the __syncthreads that follows our last read of h_t. Bytes may arrive before their phase
// is armed, since the phase cannot end while thread 0's arrival is missing. The last step neither arms nor
// sends, so every byte sent has been waited for when the CTAs leave.
//
// bulk = false: each thread sends 16 bytes at a time to every rank, its own too.
// bulk = true: the slice is written to this CTA's buffer, then copied from there, one copy per peer. It is
// overwritten two steps later, when all peers are known to have received it.
template <bool bulk>
__global__ void __launch_bounds__(kThreads, 1) gather_kernel(Gather p) {
#if HAS_CLUSTERS
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t full = shared_address(shared);
  uint4* h = reinterpret_cast<uint4*>(shared + kGatherHeader);
  const unsigned rank = cluster_rank();
  const unsigned group = blockIdx.x / p.cluster;
  const unsigned pieces = 1U << p.log2_pieces;
  const unsigned all_pieces = p.cluster << p.log2_pieces;
  const unsigned expected = (bulk ? p.cluster - 1 : p.cluster) * p.slice_bytes;

  auto barrier = [=](unsigned step) { return full + (step & 1) * 8; };
  auto buffer = [=](unsigned step) { return h + (step & 1) * all_pieces; };
  auto value = [=](unsigned step, unsigned source, unsigned piece) {
    return piece_of(stamp(step, source, p.salt + group) + 4 * piece);
  };
  auto check_all = [&](unsigned step) {
    unsigned wrong = 0;
    for (unsigned i = threadIdx.x; i < all_pieces; i += kThreads) {
      const uint4 got = buffer(step)[i];
      const uint4 want = value(step, i >> p.log2_pieces, i & (pieces - 1));
      wrong += (got.x != want.x) + (got.y != want.y) + (got.z != want.z) + (got.w != want.w);
    }
    if (wrong != 0) atomicAdd(&p.faults->mismatches, wrong);
  };

  if (threadIdx.x == 0) {
    barrier_init(barrier(0), 1);
    barrier_init(barrier(1), 1);
    fence_barrier_init();
  }
  for (unsigned i = threadIdx.x; i < all_pieces; i += kThreads) {
    buffer(0)[i] = value(0, i >> p.log2_pieces, i & (pieces - 1));
  }
  __syncthreads();
  cluster_barrier();

  Waiter waiter(p.faults);
  const long long start = clock64();
  for (unsigned t = 0; t < p.steps; ++t) {
    const bool last = t + 1 == p.steps;
    if (threadIdx.x == 0 && !last) arrive_expect(barrier(t + 1), expected);
    if (t > 0) waiter.until([=] { return try_wait(barrier(t), ((t - 1) >> 1) & 1); });
    if (p.check_every_step != 0) check_all(t);
    __syncthreads();
    if (last) break;
    const uint32_t next = shared_address(buffer(t + 1) + rank * pieces);
    if (bulk) {
      for (unsigned i = threadIdx.x; i < pieces; i += kThreads) {
        buffer(t + 1)[rank * pieces + i] = value(t + 1, rank, i);
      }
      fence_async_proxy();
      __syncthreads();
      if (threadIdx.x > 0 && threadIdx.x < p.cluster) {
        const unsigned peer = (rank + threadIdx.x) & (p.cluster - 1);
        send_bulk(map_rank(next, peer), next, p.slice_bytes, map_rank(barrier(t + 1), peer));
      }
    } else {
      const uint32_t first = stamp(t + 1, rank, p.salt + group);
      for (unsigned i = threadIdx.x; i < all_pieces; i += kThreads) {
        const unsigned piece = i & (pieces - 1);
        // Ranks start at their own place, so that they do not all send to the same one.
        const unsigned peer = (rank + (i >> p.log2_pieces)) & (p.cluster - 1);
        send_16_bytes(map_rank(next + 16 * piece, peer), piece_of(first + 4 * piece),
                      map_rank(barrier(t + 1), peer));
      }
    }
  }
  const long long stop = clock64();
  check_all(p.steps - 1);
  if (threadIdx.x == 0 && rank == 0) p.clocks[group] = stop - start;
  __syncthreads();
  cluster_barrier();  // no CTA leaves while a peer may still write to it
#endif
}

template <bool bulk>
void gather_row(Report& report, int cluster, int clusters, unsigned slice) {
  const Shape shape{cluster * clusters, cluster, largest_shared()};
  Row row;
  row.add("send", bulk ? "bulk" : "st.async")
      .add("cluster", cluster)
      .add("clusters", clusters)
      .add("slice_bytes", static_cast<int>(slice))
      .add("h_bytes", static_cast<int>(slice) * cluster);
  DeviceArray<long long> clocks(static_cast<std::size_t>(clusters));
  DeviceArray<Faults> faults(1);
  Gather params{};
  params.cluster = static_cast<unsigned>(cluster);
  params.slice_bytes = slice;
  while (16U << params.log2_pieces < slice) ++params.log2_pieces;
  params.clocks = clocks.get();
  params.faults = faults.get();

  constexpr unsigned kSteps = 1000;
  std::vector<double> runs;
  std::vector<double> slowest;
  std::vector<double> nanoseconds;
  for (int repeat = -1; repeat < kRepeats; ++repeat) {
    params.check_every_step = repeat < 0 ? 1 : 0;  // the first run is for correctness alone
    params.steps = repeat < 0 ? 65 : kSteps;
    params.salt = static_cast<unsigned>(1000 * (repeat + 2));
    faults.fill_bytes(0);
    const double elapsed = timed_launch(gather_kernel<bulk>, shape, params);
    const std::string fault = describe(faults.read()[0]);
    if (!fault.empty()) {
      report.failed_row(row, (repeat < 0 ? "in the checked run, " : "in a timed run, ") + fault);
      return;
    }
    if (repeat < 0) continue;
    const std::vector<long long> each = clocks.read();
    runs.push_back(static_cast<double>(median(each)) / (kSteps - 1));
    slowest.push_back(static_cast<double>(*std::max_element(each.begin(), each.end())) / (kSteps - 1));
    nanoseconds.push_back(elapsed / (kSteps - 1));
  }
  const double step_clocks = median(runs);
  report.row(row.add("clocks", step_clocks)
                 .add("slowest", median(slowest))
                 .add("ns", median(nanoseconds))
                 .add("bytes_in_per_clock", (cluster - 1.0) * slice / step_clocks));
}

void run_gather(Report& report) {
  require_clusters();
  for (const int cluster : {2, 4, 8, 16}) {
    const Shape one{cluster, cluster, largest_shared()};
    const int most =
        std::min(most_clusters(gather_kernel<false>, one), most_clusters(gather_kernel<true>, one));
    if (most == 0) continue;
    for (const int clusters : {1, most}) {
      for (unsigned slice = 512; slice <= 32768; slice *= 2) {
        const unsigned needed = kGatherHeader + 2 * slice * static_cast<unsigned>(cluster);
        if (needed > static_cast<unsigned>(one.shared_bytes)) break;
        gather_row<false>(report, cluster, clusters, slice);
        gather_row<true>(report, cluster, clusters, slice);
      }
    }
  }
}

// ================================================================ grid

enum class Sync { kGridSync, kOneCounter, kStepCounters, kTagged };

const char* name_of(Sync sync) {
  switch (sync) {
    case Sync::kGridSync: return "grid.sync";
    case Sync::kOneCounter: return "one counter";
    case Sync::kStepCounters: return "counter per step";
    default: return "tag in the data";
  }
}

struct Exchange {
  unsigned pieces;  // of 16 bytes that one CTA contributes each step
  unsigned steps;
  uint4* data;         // [steps][CTAs][pieces]; twice the pieces with tags
  unsigned* counters;  // [steps], zero
  uint32_t* sums;      // [CTAs], zero
  long long* clocks;   // [CTAs]
  Faults* faults;
};

// A word's value times an odd number that says where it stands, so that the sum shows wrong places too.
__host__ __device__ constexpr uint32_t weighted(uint32_t word, uint32_t place) {
  return word * (2 * place + 1);
}

// 16 bytes as two words with their tag beside each. An aligned 8 byte element is written and read as one, so
// the word is there when the tag is; no order between elements is needed.
__device__ void store_tagged(uint4* pointer, uint32_t a, uint32_t b, uint32_t tag) {
  const uint64_t high = static_cast<uint64_t>(tag) << 32;
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(pointer), "l"(high | a), "l"(high | b)
               : "memory");
}

__device__ bool load_tagged(const uint4* pointer, uint32_t tag, uint32_t& a, uint32_t& b) {
  uint64_t first;
  uint64_t second;
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(first), "=l"(second)
               : "l"(pointer)
               : "memory");
  a = static_cast<uint32_t>(first);
  b = static_cast<uint32_t>(second);
  return static_cast<uint32_t>(first >> 32) == tag && static_cast<uint32_t>(second >> 32) == tag;
}

// Each step every CTA publishes its pieces and reads those of all CTAs. Each step has memory of its own, as y
// has, so nothing is overwritten. The grid must be resident as a whole: cooperative launch.
template <Sync sync>
__global__ void __launch_bounds__(kThreads, 1) exchange_kernel(Exchange p) {
  const unsigned cta = blockIdx.x;
  const unsigned ctas = gridDim.x;
  const unsigned own = sync == Sync::kTagged ? 2 * p.pieces : p.pieces;
  const unsigned all = own * ctas;
  uint32_t sum = 0;
  Waiter waiter(p.faults);
  const long long start = clock64();
  for (unsigned t = 0; t < p.steps; ++t) {
    uint4* step_data = p.data + static_cast<std::size_t>(t) * all;
    const uint32_t first = stamp(t, cta, 0);
    if (sync == Sync::kTagged) {
      for (unsigned i = threadIdx.x; i < own; i += kThreads) {
        store_tagged(step_data + cta * own + i, first + 2 * i, first + 2 * i + 1, t + 1);
      }
      constexpr unsigned kBatch = 4;  // loads in flight; those whose data are not there yet are repeated
      for (unsigned i = threadIdx.x; i < all; i += kBatch * kThreads) {
        uint32_t a[kBatch];
        uint32_t b[kBatch];
        waiter.until([&] {
          bool ready = true;
#pragma unroll
          for (unsigned j = 0; j < kBatch; ++j) {
            const unsigned at = i + j * kThreads;
            if (at < all) ready &= load_tagged(step_data + at, t + 1, a[j], b[j]);
          }
          return ready;
        });
#pragma unroll
        for (unsigned j = 0; j < kBatch; ++j) {
          const unsigned at = i + j * kThreads;
          if (at < all) sum += weighted(a[j], 2 * at) + weighted(b[j], 2 * at + 1);
        }
      }
    } else {
      for (unsigned i = threadIdx.x; i < own; i += kThreads) {
        step_data[cta * own + i] = piece_of(first + 4 * i);
      }
      if (sync == Sync::kGridSync) {
        cooperative_groups::this_grid().sync();
      } else {
        // Thread 0's release covers what the CTA wrote before this barrier, its acquire what is read after
        // the next.
        __syncthreads();
        if (threadIdx.x == 0) {
          unsigned* counter = sync == Sync::kOneCounter ? p.counters : p.counters + t;
          const unsigned target = sync == Sync::kOneCounter ? ctas * (t + 1) : ctas;
          add_release(counter, 1);
          waiter.until([=] { return load_acquire(counter) >= target; });
        }
        __syncthreads();
      }
#pragma unroll 4
      for (unsigned i = threadIdx.x; i < all; i += kThreads) {
        const uint4 piece = __ldcg(step_data + i);
        sum += weighted(piece.x, 4 * i) + weighted(piece.y, 4 * i + 1) + weighted(piece.z, 4 * i + 2) +
               weighted(piece.w, 4 * i + 3);
      }
    }
    __syncthreads();  // where a kernel would have h in shared memory, and compute
  }
  const long long stop = clock64();
  atomicAdd(&p.sums[cta], sum);
  if (threadIdx.x == 0) p.clocks[cta] = stop - start;
}

uint32_t expected_sum(unsigned ctas, unsigned words, unsigned steps) {
  uint32_t sum = 0;
  for (unsigned t = 0; t < steps; ++t) {
    for (unsigned cta = 0; cta < ctas; ++cta) {
      const uint32_t first = stamp(t, cta, 0);
      for (unsigned w = 0; w < words; ++w) sum += weighted(first + w, cta * words + w);
    }
  }
  return sum;
}

template <Sync sync>
void exchange_row(Report& report, int ctas, unsigned bytes, unsigned steps, uint32_t expected) {
  Row row;
  row.add("sync", name_of(sync)).add("ctas", ctas).add("bytes_per_cta", static_cast<int>(bytes));
  Exchange params{};
  params.pieces = bytes / 16;
  params.steps = steps;
  const std::size_t width = sync == Sync::kTagged ? 2 : 1;
  DeviceArray<uint4> data(width * params.pieces * static_cast<unsigned>(ctas) * steps);
  DeviceArray<unsigned> counters(steps);
  DeviceArray<uint32_t> sums(static_cast<std::size_t>(ctas));
  DeviceArray<long long> clocks(static_cast<std::size_t>(ctas));
  DeviceArray<Faults> faults(1);
  params.data = data.get();
  params.counters = counters.get();
  params.sums = sums.get();
  params.clocks = clocks.get();
  params.faults = faults.get();
  // One CTA per multiprocessor, as with a persistent kernel.
  const Shape shape{ctas, 1, largest_shared(), true};
  allow(exchange_kernel<sync>, shape);

  std::vector<double> runs;
  std::vector<double> nanoseconds;
  for (int repeat = -1; repeat < kRepeats; ++repeat) {
    data.fill_bytes(0);  // no tag is 0, and no run finds what the one before it wrote
    counters.fill_bytes(0);
    sums.fill_bytes(0);
    faults.fill_bytes(0);
    CHECK(cudaDeviceSynchronize());
    const double elapsed = timed_launch(exchange_kernel<sync>, shape, params);
    std::string fault = describe(faults.read()[0]);
    for (const uint32_t sum : sums.read()) {
      if (fault.empty() && sum != expected) fault = "a CTA received a wrong sum";
    }
    if (!fault.empty()) {
      report.failed_row(row, fault);
      return;
    }
    if (repeat < 0) continue;  // the first run warms up
    runs.push_back(static_cast<double>(median(clocks.read())) / steps);
    nanoseconds.push_back(elapsed / steps);
  }
  report.row(row.add("clocks", median(runs)).add("ns", median(nanoseconds)));
}

void run_grid(Report& report) {
  if (attribute(cudaDevAttrCooperativeLaunch) == 0)
    throw Unavailable("this device has no cooperative launches");
  constexpr unsigned kSteps = 256;
  std::vector<int> sizes;
  for (const int ctas : {16, 32, 64, 96, 128}) {
    if (ctas < multiprocessors()) sizes.push_back(ctas);
  }
  sizes.push_back(multiprocessors());
  for (const unsigned bytes : {64U, 512U, 2048U}) {
    for (const int ctas : sizes) {
      const uint32_t expected = expected_sum(static_cast<unsigned>(ctas), bytes / 4, kSteps);
      exchange_row<Sync::kGridSync>(report, ctas, bytes, kSteps, expected);
      exchange_row<Sync::kOneCounter>(report, ctas, bytes, kSteps, expected);
      exchange_row<Sync::kStepCounters>(report, ctas, bytes, kSteps, expected);
      exchange_row<Sync::kTagged>(report, ctas, bytes, kSteps, expected);
    }
  }
}

// ================================================================ mma

constexpr int kWeightTiles = 32;  // of 16 x 16 weights per warp: 128 registers a thread
constexpr int kWarps = kThreads / 32;

// One warp holds mt x (32 / mt) tiles of weights, M x K; h is K x n.
template <int mt, int nt>
struct Tile {
  static constexpr int k_steps = kWeightTiles / mt;
  static constexpr int K = 16 * k_steps;
  static constexpr int M = kWarps * mt * 16;
  static constexpr int n = 8 * nt;
  static constexpr int pitch = K + 8;  // of a column of h: an odd number of 16 bytes, so no bank conflicts
  static constexpr int shared_bytes = 2 * n * pitch;
  // An instruction waits for the one that wrote its accumulators: at least 4 independent ones.
  static constexpr int chains = mt * nt >= 4 ? 1 : 4 / (mt * nt);
};

__device__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ void load_matrices(uint32_t (&b)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address)
               : "memory");
}

// out[M][n] = steps * weights[M][K] * h[n][K]^T in every CTA, each step reading h from shared memory again.
template <int mt, int nt>
__global__ void __launch_bounds__(kThreads, 1)
    mma_kernel(const uint16_t* weights, const uint16_t* h, float* out, int steps, int barriers,
               long long* clocks) {
  using T = Tile<mt, nt>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = lane / 4;  // row of a and c, column of b
  const int pair = lane % 4;   // two neighbouring k of a and b, columns of c
  uint16_t* columns = reinterpret_cast<uint16_t*>(shared);
  for (int i = static_cast<int>(threadIdx.x); i < T::n * T::K; i += kThreads) {
    columns[i / T::K * T::pitch + i % T::K] = h[i];
  }
  uint32_t a[mt][T::k_steps][4];
#pragma unroll
  for (int m = 0; m < mt; ++m) {
#pragma unroll
    for (int k = 0; k < T::k_steps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = (warp * mt + m) * 16 + group + i % 2 * 8;
        const int column = k * 16 + pair * 2 + i / 2 * 8;
        a[m][k][i] = *reinterpret_cast<const uint32_t*>(weights + row * T::K + column);
      }
    }
  }
  float c[T::chains][mt][nt][4] = {};
  // With nt = 1 the four matrices are two steps of k, else two tiles of n at one step of k.
  const int matrix = lane / 8;
  const int matrix_n = nt == 1 ? 0 : matrix / 2 * 8;
  const int matrix_k = nt == 1 ? matrix * 8 : matrix % 2 * 8;
  const uint32_t lane_address = shared_address(columns + (matrix_n + lane % 8) * T::pitch + matrix_k);
  __syncthreads();

  const long long start = clock64();
  for (int step = 0; step < steps; ++step) {
    if constexpr (nt == 1) {
#pragma unroll
      for (int k = 0; k < T::k_steps; k += 2) {
        uint32_t b[4];
        load_matrices(b, lane_address + static_cast<uint32_t>(2 * 16 * k));
#pragma unroll
        for (int m = 0; m < mt; ++m) {
          mma_bf16(c[k % T::chains][m][0], a[m][k], b[0], b[1]);
          mma_bf16(c[(k + 1) % T::chains][m][0], a[m][k + 1], b[2], b[3]);
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < T::k_steps; ++k) {
#pragma unroll
        for (int j = 0; j < nt; j += 2) {
          uint32_t b[4];
          load_matrices(b, lane_address + static_cast<uint32_t>(2 * (8 * j * T::pitch + 16 * k)));
#pragma unroll
          for (int m = 0; m < mt; ++m) {
            mma_bf16(c[k % T::chains][m][j], a[m][k], b[0], b[1]);
            mma_bf16(c[k % T::chains][m][j + 1], a[m][k], b[2], b[3]);
          }
        }
      }
    }
    if (barriers != 0) __syncthreads();
  }
  const long long stop = clock64();

  float* own = out + static_cast<std::size_t>(blockIdx.x) * T::M * T::n;
#pragma unroll
  for (int m = 0; m < mt; ++m) {
#pragma unroll
    for (int j = 0; j < nt; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float total = 0;
#pragma unroll
        for (int chain = 0; chain < T::chains; ++chain) total += c[chain][m][j][i];
        own[((warp * mt + m) * 16 + group + i / 2 * 8) * T::n + j * 8 + pair * 2 + i % 2] = total;
      }
    }
  }
  if (threadIdx.x == 0) clocks[blockIdx.x] = stop - start;
}

uint16_t bf16_bits(float value) {  // cuts off, which is exact for the small integers of the check
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

template <int mt, int nt>
void mma_rows(Report& report) {
  using T = Tile<mt, nt>;
  const int ctas = multiprocessors();
  const Shape shape{ctas, 1, T::shared_bytes};
  allow(mma_kernel<mt, nt>, shape);
  Row head;
  head.add("m_tiles_per_warp", mt).add("n", T::n).add("K", T::K);

  // Small integers: every sum is exact, whatever the order.
  std::vector<int> weights_int(static_cast<std::size_t>(T::M) * T::K);
  std::vector<int> h_int(static_cast<std::size_t>(T::n) * T::K);
  uint32_t counter = 0;
  for (int& value : weights_int) value = static_cast<int>(stamp(counter++, 1, 0) % 7) - 3;
  for (int& value : h_int) value = static_cast<int>(stamp(counter++, 2, 0) % 7) - 3;
  auto as_bf16 = [](const std::vector<int>& values, double scale) {
    std::vector<uint16_t> bits;
    for (const int value : values) bits.push_back(bf16_bits(static_cast<float>(value * scale)));
    return bits;
  };
  DeviceArray<float> out(static_cast<std::size_t>(ctas) * T::M * T::n);
  DeviceArray<long long> clocks(static_cast<std::size_t>(ctas));
  {
    constexpr int kCheckSteps = 3;
    const DeviceArray<uint16_t> weights(as_bf16(weights_int, 1));
    const DeviceArray<uint16_t> h(as_bf16(h_int, 1));
    out.fill_bytes(0xFF);
    timed_launch(mma_kernel<mt, nt>, shape, static_cast<const uint16_t*>(weights.get()),
                 static_cast<const uint16_t*>(h.get()), out.get(), kCheckSteps, 1, clocks.get());
    std::vector<float> expected;
    for (int row = 0; row < T::M; ++row) {
      for (int column = 0; column < T::n; ++column) {
        int sum = 0;
        for (int k = 0; k < T::K; ++k) {
          sum += weights_int[static_cast<std::size_t>(row * T::K + k)] *
                 h_int[static_cast<std::size_t>(column * T::K + k)];
        }
        expected.push_back(static_cast<float>(kCheckSteps * sum));
      }
    }
    const std::vector<float> got = out.read();
    long long wrong = 0;
    for (std::size_t i = 0; i < got.size(); ++i) wrong += got[i] == expected[i % expected.size()] ? 0 : 1;
    if (wrong != 0) {
      report.failed_row(head, std::to_string(wrong) + " wrong sums");
      return;
    }
  }

  // Timed on values that use all bits of the format: a chip draws less power on simple ones, and runs faster.
  for (int& value : weights_int) value = static_cast<int>(stamp(counter++, 3, 0) % 65536) - 32768;
  for (int& value : h_int) value = static_cast<int>(stamp(counter++, 4, 0) % 65536) - 32768;
  const DeviceArray<uint16_t> weights(as_bf16(weights_int, 1.0 / 32768));
  const DeviceArray<uint16_t> h(as_bf16(h_int, 1.0 / 32768));
  constexpr int kSteps = 2000;
  for (const int barriers : {0, 1}) {
    std::vector<double> runs;
    std::vector<double> nanoseconds;
    for (int repeat = -1; repeat < kRepeats; ++repeat) {
      const double elapsed =
          timed_launch(mma_kernel<mt, nt>, shape, static_cast<const uint16_t*>(weights.get()),
                       static_cast<const uint16_t*>(h.get()), out.get(), kSteps, barriers, clocks.get());
      if (repeat < 0) continue;  // the first run warms up
      runs.push_back(static_cast<double>(median(clocks.read())) / kSteps);
      nanoseconds.push_back(elapsed / kSteps);
    }
    const double step_clocks = median(runs);
    Row row = head;
    report.row(row.add("barrier_each_step", barriers)
                   .add("clocks", step_clocks)
                   .add("ns", median(nanoseconds))
                   .add("fma_per_clock", static_cast<double>(T::M) * T::K * T::n / step_clocks));
  }
}

void run_mma(Report& report) {
  mma_rows<1, 1>(report);
  mma_rows<1, 2>(report);
  mma_rows<1, 4>(report);
  mma_rows<1, 8>(report);
  mma_rows<2, 1>(report);
  mma_rows<2, 2>(report);
  mma_rows<2, 4>(report);
  mma_rows<2, 8>(report);
  mma_rows<4, 1>(report);
  mma_rows<4, 2>(report);
  mma_rows<4, 4>(report);
}

// ================================================================ parts in processes of their own

struct Part {
  const char* name;
  void (*run)(Report&);
};
constexpr Part kParts[] = {
    {"limits", run_limits}, {"latency", run_latency}, {"gather", run_gather},
    {"grid", run_grid},     {"mma", run_mma},
};

struct Outcome {
  std::string device = "null";
  std::vector<std::string> rows;
  std::string error;  // JSON text, empty if there was none
  bool failed = true;
  bool no_device = false;
};

// In the child: exit status 0, 1 (failed) or 2 (no device).
int run_part(const Part& part, int pipe_end) {
  FILE* out = fdopen(pipe_end, "w");
  if (out == nullptr) return 1;
  Report report(out);
  try {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess) throw NoDevice(cudaGetErrorString(status));
    if (devices == 0) throw NoDevice("none is visible");
    report.device(device_row());
    warm_up();
    part.run(report);
    if (report.failed()) report.error("some rows failed");
    return report.failed() ? 1 : 0;
  } catch (const NoDevice& error) {
    report.error(std::string("no CUDA device: ") + error.what());
    return 2;
  } catch (const Unavailable& reason) {
    report.error(std::string("unavailable: ") + reason.what());
    return 0;
  } catch (const std::exception& error) {
    report.error(error.what());
    return 1;
  }
}

// Everything the child writes until it closes its end; false if it has not by the deadline.
bool read_until(int pipe_end, std::chrono::steady_clock::time_point deadline, std::string& text) {
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd waiting{pipe_end, POLLIN, 0};
    const int ready = poll(&waiting, 1, static_cast<int>(left.count()));
    if (ready < 0 && errno != EINTR) return false;
    if (ready <= 0) continue;
    char buffer[4096];
    const ssize_t count = read(pipe_end, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count == 0;
    text.append(buffer, static_cast<std::size_t>(count));
  }
}

// The child's exit status as waitpid gives it, -1 if it has not ended in time: a driver may take long to end
// a process whose kernel hangs, and nobody needs to wait for that.
int reap(pid_t child, std::chrono::steady_clock::time_point deadline) {
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > deadline) return -1;
    usleep(10000);
  }
  return status;
}

Outcome supervise(const Part& part) {
  Outcome outcome;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    outcome.error = quoted(std::string("pipe: ") + std::strerror(errno));
    return outcome;
  }
  const pid_t child = fork();
  if (child < 0) {
    outcome.error = quoted(std::string("fork: ") + std::strerror(errno));
    return outcome;
  }
  if (child == 0) {
    close(ends[0]);
    _exit(run_part(part, ends[1]));
  }
  close(ends[1]);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(kPartSeconds);
  std::string text;
  const bool ended = read_until(ends[0], deadline, text);
  close(ends[0]);
  if (!ended) kill(child, SIGKILL);
  const int status = reap(child, std::chrono::steady_clock::now() + std::chrono::seconds(1));

  for (std::size_t start = 0, end; (end = text.find('\n', start)) != std::string::npos; start = end + 1) {
    const std::string line = text.substr(start, end - start);
    const std::size_t space = line.find(' ');
    const std::string kind = line.substr(0, space);
    const std::string value = line.substr(space + 1);
    if (kind == "device") outcome.device = value;
    if (kind == "row") outcome.rows.push_back(value);
    if (kind == "error") outcome.error = value;
  }
  if (!ended) {
    outcome.error = quoted("stopped after " + std::to_string(kPartSeconds) + " s");
  } else if (status == -1) {
    outcome.error = quoted("did not exit");
  } else if (WIFSIGNALED(status)) {
    outcome.error = quoted("ended by signal " + std::to_string(WTERMSIG(status)));
  } else if (WEXITSTATUS(status) != 0 && outcome.error.empty()) {
    outcome.error = quoted("exit status " + std::to_string(WEXITSTATUS(status)));
  }
  const int exit_status = ended && status != -1 && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  outcome.failed = exit_status != 0;
  outcome.no_device = exit_status == 2;
  return outcome;
}

int usage(const char* program) {
  std::fprintf(stderr, "usage: %s [--out FILE] [PART ...]\nparts:", program);
  for (const Part& part : kParts) std::fprintf(stderr, " %s", part.name);
  std::fprintf(stderr, "\n");
  return 64;
}

}  // namespace

int main(int argc, char** argv) {
  const char* file = nullptr;
  std::vector<Part> chosen;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--out") == 0 && i + 1 < argc) {
      file = argv[++i];
      continue;
    }
    const auto part = std::find_if(std::begin(kParts), std::end(kParts),
                                   [&](const Part& known) { return std::strcmp(known.name, argv[i]) == 0; });
    if (part == std::end(kParts)) return usage(argv[0]);
    chosen.push_back(*part);
  }
  if (chosen.empty()) chosen.assign(std::begin(kParts), std::end(kParts));

  std::string device = "null";
  std::string parts;
  int exit_status = 0;
  for (const Part& part : chosen) {
    std::fprintf(stderr, "%s\n", part.name);
    const auto start = std::chrono::steady_clock::now();
    const Outcome outcome = supervise(part);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (device == "null") device = outcome.device;
    if (!outcome.error.empty()) std::fprintf(stderr, "  %s\n", outcome.error.c_str());
    std::fprintf(stderr, "  %.1f s\n", elapsed.count());
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.2f", elapsed.count());
    parts += (parts.empty() ? "" : ",\n") + quoted(part.name) + ": {\"seconds\": " + seconds +
             ", \"error\": " + (outcome.error.empty() ? "null" : outcome.error) + ", \"rows\": [";
    for (std::size_t i = 0; i < outcome.rows.size(); ++i)
      parts += (i == 0 ? "\n " : ",\n ") + outcome.rows[i];
    parts += "]}";
    if (outcome.failed) exit_status = 1;
    if (outcome.no_device) {
      exit_status = 2;
      break;
    }
  }
  FILE* out = file == nullptr ? stdout : std::fopen(file, "w");
  if (out == nullptr) {
    std::fprintf(stderr, "cannot write %s: %s\n", file, std::strerror(errno));
    return 1;
  }
  std::fprintf(out, "{\"program\": \"gpu_probe\",\n\"device\": %s,\n\"parts\": {\n%s\n}}\n", device.c_str(),
               parts.c_str());
  if (std::fclose(out) != 0) return 1;
  return exit_status;
}
