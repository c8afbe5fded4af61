// Moore Threads (MUSA): CUDA's names as MUSA's, as far as portable sources use them. Shuffles, ballots and launches have CUDA's
// spelling there.
//
// From the names in published sources for this compiler; no MUSA toolkit has compiled it yet (docs/guide/porting.md).
#pragma once

#include <musa_runtime.h>

// Kernels take it for the sign that NVIDIA's conversions to bfloat16 and FP8 are there; the plain C ones serve here.
#undef __CUDA_ARCH__

#define cudaError_t musaError_t
#define cudaSuccess musaSuccess
#define cudaErrorMemoryAllocation musaErrorMemoryAllocation
#define cudaGetErrorName musaGetErrorName
#define cudaGetErrorString musaGetErrorString
#define cudaGetLastError musaGetLastError
#define cudaStream_t musaStream_t

// It takes <<< for three operators:
// clang-format off
#define MT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__), musaGetLastError())
// clang-format on

#define MT_DYNAMIC_SHARED(type, name)                                                      \
  extern __shared__ __attribute__((aligned(16))) unsigned char mt_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(mt_dynamic_shared_memory)
