// CUDA as it is: the names that vendor.h promises beyond CUDA's own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

// It takes <<< for three operators:
// clang-format off
#define MT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__), cudaGetLastError())
// clang-format on

// Every kernel of a file sees one array of 16-byte units; the type is put on it here.
#define MT_DYNAMIC_SHARED(type, name)                 \
  extern __shared__ uint4 mt_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(mt_dynamic_shared_memory)
