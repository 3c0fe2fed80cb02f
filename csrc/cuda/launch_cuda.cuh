// launch() for the GPU.  A .cu file includes this and then the list of kernels that it is to hold.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <type_traits>

#include "cuda/cuda_context.cuh"
#include "cuda/error.h"
#include "cuda/launch.h"

namespace fastrnn::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    run_kernel(const __grid_constant__ typename Kernel::Params params) {
  CudaContext x;
  Kernel::run(params, x);
}

// Lets the kernel have as much shared memory as a CTA of the current device can, and clusters of more than
// the 8 CTAs that every device has.  Once per kernel and device: the calls take the driver's lock.
template <class Kernel>
void allow_all_of_the_device(int device) {
  static std::atomic<std::uint64_t> allowed{0};
  const std::uint64_t bit = device < 64 ? std::uint64_t{1} << device : 0;
  if (allowed.load(std::memory_order_relaxed) & bit) return;
  int most = 0, capability = 0;
  FRNN_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  FRNN_CUDA(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device));
  FRNN_CUDA(cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  if (capability >= 9) {
    FRNN_CUDA(cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

// A launch as the runtime wants it described.
struct LaunchConfig {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};

  LaunchConfig(Stream stream, const Grid& grid, int threads) {
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(grid.shared);
    config.stream = static_cast<cudaStream_t>(stream.handle);
    config.attrs = attributes;
    if (grid.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(grid.cluster);
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
    }
    if (grid.cooperative) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

// Clusters of such a grid that the current device runs at once; 0 of a size that it does not have, and where
// the image that it runs was made for devices without clusters (PTX of 8.0, say).
template <class Kernel>
int clusters_at_once(const Grid& grid) {
  cudaFuncAttributes image;
  if (cudaFuncGetAttributes(&image, run_kernel<Kernel>) != cudaSuccess || image.ptxVersion < 90) {
    cudaGetLastError();
    return 0;
  }
  allow_all_of_the_device<Kernel>(current_device());
  const LaunchConfig launched({}, grid, Kernel::kThreads);
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, run_kernel<Kernel>, &launched.config) == cudaSuccess)
    return count;
  cudaGetLastError();
  return 0;
}

template <class Kernel>
void launch(Stream stream, const Grid& grid, const typename Kernel::Params& params) {
  static_assert(std::is_trivially_copyable_v<typename Kernel::Params>);
  static_assert(Kernel::kThreads % kWarp == 0);
  if (grid.blocks == 0) return;

  constexpr int always_allowed = 48 * 1024;
  if (grid.shared > always_allowed || grid.cluster > 1) allow_all_of_the_device<Kernel>(current_device());

  const LaunchConfig launched(stream, grid, Kernel::kThreads);
  check_status(static_cast<int>(cudaLaunchKernelEx(&launched.config, run_kernel<Kernel>, params)),
               Kernel::kName, __FILE__, __LINE__);
  check_launch(Kernel::kName, stream);
}

}  // namespace fastrnn::cuda
