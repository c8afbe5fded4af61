// The one header through which device code meets its compiler. Sources keep CUDA's spelling; exactly one map is chosen:
//   (default)         CUDA         vendor/cuda.h
//   MT_VENDOR_HIP     AMD          vendor/hip.h     compiled in CI where hipcc is installed
//   MT_VENDOR_MUSA    Moore Threads vendor/musa.h
//   MT_VENDOR_HOST    no device    vendor/host.h    kernels run on the processor, thread by thread, for tests
//
// What portable sources may use beside the C++ language
//  - __global__ __device__ __host__ __shared__ __launch_bounds__ __forceinline__, threadIdx blockIdx blockDim gridDim,
//    __syncthreads, __syncwarp, __shfl_sync __shfl_up_sync __shfl_down_sync __shfl_xor_sync over a width of 32, __ballot_sync,
//    atomicAdd/atomicMax/atomicMin on integers, float4/uint4/uint2 and friends, the single-precision math functions;
//  - MT_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...): a launch, as a cudaError_t. A template kernel with a
//    comma in its name goes in through a variable: auto* kernel = Kernel<float, 4>;
//  - MT_DYNAMIC_SHARED(type, name): the launch's shared memory, as `type* name`;
//  - warps of 32 threads, static shared memory up to 48 KiB, nothing cooperative, no inline assembly.
// What only one architecture has lives in files of its own that the other maps leave out (docs/guide/porting.md).
#pragma once

#if defined(MT_VENDOR_HOST)
#include "kernels/cuda/vendor/host.h"
#elif defined(MT_VENDOR_HIP)
#include "kernels/cuda/vendor/hip.h"
#elif defined(MT_VENDOR_MUSA)
#include "kernels/cuda/vendor/musa.h"
#else
#include "kernels/cuda/vendor/cuda.h"
#endif

// The plain C headers of kernels/abi, included after this one, are device code too.
#define MT_HOST_DEVICE __host__ __device__
