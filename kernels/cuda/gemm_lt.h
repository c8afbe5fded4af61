// Matrix products by cuBLASLt. A plan (descriptors and the algorithm) is made per problem, at the job's start: `PrepareGemm` is
// called when a shape is declared. With a cache file the fastest of the library's proposals is taken, measured once and
// remembered; without one it is the library's first, so that in both cases a restart computes the same bits. Algorithms that
// reduce in place or in a type narrower than float32 are never taken: results are deterministic and rounded once.
//
// After OpenGemm everything is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/abi/mt_backend.h"
#include "kernels/cuda/operations.h"

namespace mt::cuda {

struct GemmOptions {
  bool tf32 = false;
  std::string cache_path;  // empty = none
};

// After OpenDevice; once. MT_ERROR_UNSUPPORTED if there is no cuBLASLt.
int32_t OpenGemm(const GemmOptions& options);

// As dispatch.h's Provided asks.
bool GemmSupports(const mt_matmul_args& args);
const char* GemmName(const mt_matmul_args& args);
int64_t GemmWorkspace(const mt_matmul_args& args);
int32_t Gemm(const mt_matmul_args& args, const Launch& launch);

// Makes the plan of a shape (pointers are ignored) unless there is one. It may allocate, measure and wait: never in a step.
int32_t PrepareGemm(const mt_matmul_args& args);

}  // namespace mt::cuda
