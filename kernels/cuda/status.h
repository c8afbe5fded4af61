// Errors of the CUDA runtime as the ABI's codes, with call and place.
#pragma once

#include <cstdint>

#include "kernels/abi/mt_backend.h"
#include "kernels/cuda/vendor/vendor.h"
#include "kernels/host/host.h"

namespace mt::cuda {

inline int32_t CudaFailed(cudaError_t error, const char* call, const char* file, int line) {
  (void)cudaGetLastError();  // told here: the next launch must not take it for its own
  return host::Fail(error == cudaErrorMemoryAllocation ? MT_ERROR_MEMORY : MT_ERROR_DEVICE, 0,
                    "%s at %s:%d: %s (%s)", call, file, line, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

}  // namespace mt::cuda

// Returns from the enclosing function with the code of a call that failed.
#define MT_CUDA(call)                                                           \
  do {                                                                          \
    if (const cudaError_t mt_cuda_error = (call); mt_cuda_error != cudaSuccess) \
      return ::mt::cuda::CudaFailed(mt_cuda_error, #call, __FILE__, __LINE__);  \
  } while (false)
