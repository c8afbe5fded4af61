// AMD (HIP): CUDA's names as HIP's, as far as portable sources use them.
//
// A wave has 32 threads (RDNA) or 64 (CDNA); our warps have 32 in either case, because every exchange is over a width of 32 and
// lanes are counted by threadIdx. The lanes of a wave run together, so exchanges name no mask: a call under divergence reaches
// the lanes that are there, which are those of the mask.
#pragma once

#include <hip/hip_runtime.h>

#define cudaError_t hipError_t
#define cudaSuccess hipSuccess
#define cudaErrorMemoryAllocation hipErrorOutOfMemory
#define cudaGetErrorName hipGetErrorName
#define cudaGetErrorString hipGetErrorString
#define cudaGetLastError hipGetLastError
#define cudaStream_t hipStream_t

// The second argument, blocks per multiprocessor, has no counterpart: HIP's counts waves.
#undef __launch_bounds__
#define __launch_bounds__(threads, ...) __attribute__((amdgpu_flat_work_group_size(1, (threads))))

// Macros, because later releases declare functions of these names with 64-bit masks. The last argument, the width, is 32.
#define __shfl_sync(mask, value, source, ...) __shfl((value), (source), 32)
#define __shfl_up_sync(mask, value, delta, ...) __shfl_up((value), (delta), 32)
#define __shfl_down_sync(mask, value, delta, ...) __shfl_down((value), (delta), 32)
#define __shfl_xor_sync(mask, value, lanes, ...) __shfl_xor((value), (lanes), 32)

namespace mt::hip {

// The votes of this thread's half of a wave of 64.
__device__ __forceinline__ unsigned Ballot(unsigned mask, int predicate) {
  return static_cast<unsigned>(__ballot(predicate) >> (__lane_id() & 32u)) & mask;
}
// Shared memory that a lane wrote before is seen by the wave's lanes after.
__device__ __forceinline__ void SyncWarp() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

}  // namespace mt::hip

#define __ballot_sync(mask, predicate) ::mt::hip::Ballot((mask), (predicate))
#define __syncwarp(...) ::mt::hip::SyncWarp()

// It takes <<< for three operators:
// clang-format off
#define MT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__), hipGetLastError())
// clang-format on

#define MT_DYNAMIC_SHARED(type, name)                                                      \
  extern __shared__ __attribute__((aligned(16))) unsigned char mt_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(mt_dynamic_shared_memory)
