// Times algorithms of cuBLASLt on scratch operands.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/gemm_lt_plan.h"

namespace mt::cuda {

// Median seconds of each algorithm (infinity for one that fails), on operands of small random numbers: with zeros a GPU draws
// less power and clocks higher than in a job. Allocates and frees device memory, waits for its own stream. Empty if there is no
// memory for the operands; host::ErrorMessage then says so.
std::vector<double> MeasureAlgorithms(const CublasLt& lt, cublasLtHandle_t handle,
                                      const GemmProblem& problem,
                                      const std::vector<cublasLtMatmulAlgo_t>& algorithms,
                                      size_t workspace_bytes);

}  // namespace mt::cuda
