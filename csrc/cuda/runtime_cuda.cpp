// The runtime on a GPU. Linked with the static CUDA runtime, which opens the driver at the first call and
// says so when there is none: nothing here needs a driver to be loaded.
#include <cuda.h>  // types alone
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>

#include "cuda/error.h"
#include "cuda/runtime.h"

namespace fastrnn::cuda {

namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

std::string text_of(cudaError_t status) {
  return std::string(cudaGetErrorName(status)) + " (" + cudaGetErrorString(status) + ")";
}

std::pair<int, int> version_pair(int version) { return {version / 1000, version % 1000 / 10}; }

std::string version_text(std::pair<int, int> version) {
  return std::to_string(version.first) + "." + std::to_string(version.second);
}

// CUDA does not survive fork(): who used it first is remembered to tell why it fails in a child.
std::atomic<pid_t> first_user{0};

// The pool of each device, made when it is first needed and never destroyed: arrays may outlive everything
// that could order a destruction.
struct Pools {
  std::mutex mutex;
  std::deque<cudaMemPool_t> of_device;
};

cudaMemPool_t make_pool(int device) {
  cudaMemPoolProps props{};
  props.allocType = cudaMemAllocationTypePinned;
  props.location.type = cudaMemLocationTypeDevice;
  props.location.id = device;
  cudaMemPool_t pool = nullptr;
  FRNN_CUDA(cudaMemPoolCreate(&pool, &props));
  std::uint64_t keep = UINT64_MAX;
  FRNN_CUDA(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
  return pool;
}

cudaMemPool_t pool() {
  static Pools* const all = new Pools;
  const auto device = static_cast<std::size_t>(current_device());
  const std::lock_guard<std::mutex> lock(all->mutex);
  if (all->of_device.size() <= device) all->of_device.resize(device + 1, nullptr);
  cudaMemPool_t& pool = all->of_device[device];
  if (!pool) pool = make_pool(static_cast<int>(device));
  return pool;
}

// The driver's own way to what is current in this thread. cudaSetDevice puts a device back, and since CUDA 12
// sets that device up if nobody had: half a gigabyte of the first device for work on the second.
struct ContextCalls {
  CUresult (*get)(CUcontext*) = nullptr;
  CUresult (*set)(CUcontext) = nullptr;
};

void* driver_call(const char* name) {
  constexpr unsigned kSince = 4000;  // CUDA 4.0 has both in the form declared above
  void* call = nullptr;
  FRNN_CUDA(cudaGetDriverEntryPointByVersion(name, &call, kSince, cudaEnableDefault, nullptr));
  if (!call) throw Error(std::string("the driver has no ") + name);
  return call;
}

const ContextCalls& context_calls() {
  static const ContextCalls calls{reinterpret_cast<CUresult (*)(CUcontext*)>(driver_call("cuCtxGetCurrent")),
                                  reinterpret_cast<CUresult (*)(CUcontext)>(driver_call("cuCtxSetCurrent"))};
  return calls;
}

// Null if this thread has used no device yet.
void* current_context() {
  CUcontext context = nullptr;
  if (context_calls().get(&context) != CUDA_SUCCESS) context = nullptr;  // cudaSetDevice says what is wrong
  return context;
}

}  // namespace

// ---- errors

void check_status(int status, const char* call, const char* file, int line) {
  const auto error = static_cast<cudaError_t>(status);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would be taken for the one that failed
  const std::string text =
      std::string(call) + " failed: " + text_of(error) + " [" + file + ":" + std::to_string(line) + "]";
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory(text);
  throw Error(text);
}

// ---- devices

std::string why_unavailable() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) {
    pid_t nobody = 0;
    first_user.compare_exchange_strong(nobody, getpid());
    return "";
  }
  cudaGetLastError();
  const pid_t user = first_user.load();
  if (user && user != getpid()) {
    return "this process was forked from one that had used CUDA, which does not survive a fork; start it by "
           "\"spawn\" or \"forkserver\", or use CUDA in the child alone";
  }
  const std::string built = version_text(runtime_version());
  const std::pair<int, int> driver = driver_version();
  if (driver.first == 0) return "no CUDA driver was found (libcuda.so.1), or it could not be loaded";
  if (status == cudaErrorInsufficientDriver) {
    return "the driver is made for CUDA " + version_text(driver) + ", this build for CUDA " + built +
           ": update the driver";
  }
  if (status == cudaErrorNoDevice || status == cudaSuccess) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return visible ? "the driver shows no device: CUDA_VISIBLE_DEVICES is \"" + std::string(visible) + "\""
                   : "the driver finds no device";
  }
  return "the driver does not start: " + text_of(status);
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

const DeviceInfo& device_info(int device) {
  static std::mutex* const mutex = new std::mutex;
  static auto* const known = new std::deque<DeviceInfo>;
  const std::lock_guard<std::mutex> lock(*mutex);
  while (known->size() <= static_cast<std::size_t>(device)) {
    const int next = static_cast<int>(known->size());
    cudaDeviceProp p{};
    FRNN_CUDA(cudaGetDeviceProperties(&p, next));
    int clusters = 0;
    FRNN_CUDA(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, next));
    DeviceInfo info;
    info.name = p.name;
    Limits& l = info.limits;
    l.major = p.major;
    l.minor = p.minor;
    l.processors = p.multiProcessorCount;
    l.warp = p.warpSize;
    l.threads_per_block = p.maxThreadsPerBlock;
    l.threads_per_processor = p.maxThreadsPerMultiProcessor;
    l.registers_per_block = p.regsPerBlock;
    l.registers_per_processor = p.regsPerMultiprocessor;
    l.shared_per_block = static_cast<int>(p.sharedMemPerBlockOptin);
    l.shared_per_processor = static_cast<int>(p.sharedMemPerMultiprocessor);
    l.cluster = clusters ? 8 : 1;  // what every device with clusters has
    l.cooperative = p.cooperativeLaunch != 0;
    l.l2 = static_cast<std::size_t>(p.l2CacheSize);
    l.memory = p.totalGlobalMem;
    known->push_back(info);
  }
  return (*known)[static_cast<std::size_t>(device)];
}

std::pair<int, int> driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) cudaGetLastError();
  return version_pair(version);
}

std::pair<int, int> runtime_version() { return version_pair(CUDART_VERSION); }

int current_device() {
  int device = 0;
  FRNN_CUDA(cudaGetDevice(&device));
  return device;
}

const Limits& current_limits() {
  static std::mutex* const mutex = new std::mutex;
  static auto* const known = new std::map<int, Limits>;
  const int device = current_device();
  const Limits& limits = device_info(device).limits;
  const std::lock_guard<std::mutex> lock(*mutex);
  const auto found = known->find(device);
  if (found != known->end()) return found->second;
  Limits counted = limits;
  count_clusters(counted);
  return known->emplace(device, counted).first->second;
}

DeviceScope::DeviceScope(int device) : before_(0), context_(current_context()) {
  if (context_) before_ = current_device();  // a thread without a context is about to have the first device's
  if (!context_ || device != before_) FRNN_CUDA(cudaSetDevice(device));
  if (device == before_) before_ = -1;  // nothing to put back
}

DeviceScope::~DeviceScope() {
  if (before_ >= 0) context_calls().set(static_cast<CUcontext>(context_));
}

// ---- streams

void synchronize(Stream stream) { FRNN_CUDA(cudaStreamSynchronize(native(stream))); }
void synchronize_device() { FRNN_CUDA(cudaDeviceSynchronize()); }

void wait_for(Stream later, Stream earlier) {
  if (later == earlier) return;
  cudaEvent_t event = nullptr;
  FRNN_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  const cudaError_t recorded = cudaEventRecord(event, native(earlier));
  const cudaError_t waiting =
      recorded == cudaSuccess ? cudaStreamWaitEvent(native(later), event, 0) : cudaSuccess;
  const cudaError_t destroyed = cudaEventDestroy(event);  // the driver keeps it until it has happened
  FRNN_CUDA(recorded);
  FRNN_CUDA(waiting);
  FRNN_CUDA(destroyed);
}

Stream make_stream() {
  cudaStream_t stream = nullptr;
  FRNN_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return {stream};
}

std::uint64_t capture_id(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  const cudaError_t asked = cudaStreamGetCaptureInfo(native(stream), &status, &id);
  if (asked == cudaErrorStreamCaptureImplicit) {  // the legacy stream while another is captured: it never is
    cudaGetLastError();
    return 0;
  }
  FRNN_CUDA(asked);
  switch (status) {
    case cudaStreamCaptureStatusNone: return 0;
    case cudaStreamCaptureStatusActive: return id;
    case cudaStreamCaptureStatusInvalidated: break;  // of which the id is not told
  }
  return UINT64_MAX;
}

// ---- launches

bool synchronous() {
  static const bool set = [] {
    const char* value = std::getenv("FASTRNN_CUDA_SYNC");
    return value && std::string(value) == "1";
  }();
  return set;
}

void check_launch(const char* kernel, Stream stream) {
  check_status(cudaGetLastError(), kernel, __FILE__, __LINE__);
  if (synchronous() && !capturing(stream))
    check_status(cudaStreamSynchronize(native(stream)), kernel, __FILE__, __LINE__);
}

// ---- memory

void* allocate(std::size_t bytes, Stream stream) {
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  const std::string call = "cudaMallocFromPoolAsync(" + std::to_string(bytes) + " bytes)";
  check_status(cudaMallocFromPoolAsync(&memory, bytes, pool(), native(stream)), call.c_str(), __FILE__,
               __LINE__);
  return memory;
}

void release(void* memory, Stream stream) noexcept {
  if (!memory) return;
  // At the end of the process the driver may be gone, and the memory with it.
  if (cudaFreeAsync(memory, native(stream)) != cudaSuccess) cudaGetLastError();
}

int device_of(const void* memory) {
  cudaPointerAttributes attributes{};
  FRNN_CUDA(cudaPointerGetAttributes(&attributes, memory));
  const bool there = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return there ? attributes.device : -1;
}

// ---- copies

void copy_to_device(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  refuse_in_graph(stream, kNoCopyInGraph);
  FRNN_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream)));
  // CUDA promises for no kind of memory that it was read when the call returns: pageable memory "might" be,
  // and is not where devices read it themselves (HMM, ATS).
  synchronize(stream);
}

void copy_to_host(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  refuse_in_graph(stream, kNoCopyInGraph);
  FRNN_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)));
  synchronize(stream);
}

void copy_on_device(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  FRNN_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)));
}

void set_bytes(void* to, int value, std::size_t bytes, Stream stream) {
  if (bytes == 0) return;
  FRNN_CUDA(cudaMemsetAsync(to, value, bytes, native(stream)));
}

}  // namespace fastrnn::cuda
