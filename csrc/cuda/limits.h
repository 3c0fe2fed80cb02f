// What a device can hold and run: all that `plan` knows of one. A plain struct, so that a plan can be made,
// and tested, for a device that is not there.
#pragma once

#include <cstddef>

namespace fastrnn::cuda {

// The figures of an H200, which is what the emulated device says it is.
struct Limits {
  int major = 9, minor = 0;  // compute capability
  int processors = 132;      // streaming multiprocessors
  int warp = 32;
  int threads_per_block = 1024;
  int threads_per_processor = 2048;
  int registers_per_block = 65536;
  int registers_per_processor = 65536;
  int shared_per_block = 227 * 1024;      // bytes, with the attribute that allows more than 48 KiB
  int shared_per_processor = 228 * 1024;  // bytes; each block takes 1 KiB of it for the system
  int cluster = 8;                        // blocks that any cluster launch may have; 1 where there are none
  // Clusters of 2, 4, 8 and 16 blocks that run at once if each block fills a processor; 0 where there are
  // none.
  int clusters[4] = {66, 33, 15, 7};
  bool cooperative = true;  // a grid may synchronise
  std::size_t l2 = std::size_t{60} << 20;
  std::size_t memory = std::size_t{139} << 30;

  int capability() const { return 10 * major + minor; }  // 90, as in sm_90
};

// Asks the current device for its clusters, which for 16 blocks depend on the chip itself.
void count_clusters(Limits& limits);

}  // namespace fastrnn::cuda
