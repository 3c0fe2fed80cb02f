// For the files that call CUDA: FRNN_CUDA(cudaMemcpyAsync(...)) throws what it returns, if not success.
#pragma once

namespace fastrnn::cuda {

// Throws cuda::Error, or cuda::OutOfMemory, for a cudaError_t other than cudaSuccess.
void check_status(int status, const char* call, const char* file, int line);

}  // namespace fastrnn::cuda

#define FRNN_CUDA(call) ::fastrnn::cuda::check_status(static_cast<int>(call), #call, __FILE__, __LINE__)
