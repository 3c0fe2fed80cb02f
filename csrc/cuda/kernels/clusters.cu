// How many clusters run at once: asked of a kernel that leaves the choice to shared memory.
#include "cuda/error.h"
#include "cuda/launch_cuda.cuh"

namespace fastrnn::cuda {
namespace {

struct Idle {
  static constexpr const char* kName = "idle";
  static constexpr int kThreads = 256;
  struct Params {
    int* touched;
  };
  template <class X>
  static FRNN_DEVICE void run(const Params& p, X& x) {
    if (p.touched) p.touched[x.block()] = x.thread();
  }
};

}  // namespace

void count_clusters(Limits& limits) {
  for (int& count : limits.clusters) count = 0;
  if (limits.cluster == 1) return;
  allow_all_of_the_device<Idle>(current_device());
  int size = 2;
  for (int& count : limits.clusters) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(size);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(size));
    config.blockDim = dim3(Idle::kThreads);
    config.dynamicSmemBytes = static_cast<std::size_t>(limits.shared_per_block);
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&count, run_kernel<Idle>, &config) != cudaSuccess) {
      cudaGetLastError();  // a size that this device does not have
      count = 0;
    }
    size *= 2;
  }
}

}  // namespace fastrnn::cuda
