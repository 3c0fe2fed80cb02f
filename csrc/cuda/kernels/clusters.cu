// How many clusters run at once: asked for a kernel of which shared memory leaves one CTA on a
// multiprocessor.
#include <cuda_runtime.h>

#include "cuda/error.h"
#include "cuda/limits.h"

namespace fastrnn::cuda {
namespace {

__global__ void idle() {}

}  // namespace

void count_clusters(Limits& limits) {
  for (int& count : limits.clusters) count = 0;
  if (limits.cluster == 1) return;
  FRNN_CUDA(cudaFuncSetAttribute(idle, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_per_block));
  FRNN_CUDA(cudaFuncSetAttribute(idle, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  unsigned size = 2;
  for (int& count : limits.clusters) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(size);
    config.blockDim = dim3(256);
    config.dynamicSmemBytes = static_cast<std::size_t>(limits.shared_per_block);
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&count, idle, &config) != cudaSuccess) {
      cudaGetLastError();  // a size that this device does not have
      count = 0;
    }
    size *= 2;
  }
}

}  // namespace fastrnn::cuda
