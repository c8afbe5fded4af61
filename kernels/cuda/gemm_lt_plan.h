// From a GemmProblem to cuBLASLt's descriptors. Needs the library but no device.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/libraries.h"

namespace mt::cuda {

int32_t LtFailed(const CublasLt& lt, cublasStatus_t status, const char* call, const char* file,
                 int line);
// Returns from the enclosing function with the code of a call of cuBLASLt that failed; a table `lt` is in scope.
#define MT_LT(call)                                                                           \
  do {                                                                                        \
    if (const cublasStatus_t mt_lt_status = (lt.call); mt_lt_status != CUBLAS_STATUS_SUCCESS) \
      return ::mt::cuda::LtFailed(lt, mt_lt_status, #call, __FILE__, __LINE__);               \
  } while (false)

cudaDataType_t CudaType(int32_t type);

// The shapes of the operands; C is D.
struct LtLayouts {
  cublasLtMatrixLayoutOpaque_t a, b, d;
};
int32_t MakeLayouts(const CublasLt& lt, const GemmProblem& problem, LtLayouts* layouts);

// What is computed: types, transposes, epilogue, scales. Cheap; it holds pointers, so it is made for every call.
int32_t MakeDescriptor(const CublasLt& lt, const GemmProblem& problem, const GemmOperands& operands,
                       cublasLtMatmulDescOpaque_t* descriptor);

// Up to `most` algorithms, the library's best guess first, all deterministic. MT_ERROR_UNSUPPORTED if it knows none.
int32_t ProposeAlgorithms(const CublasLt& lt, cublasLtHandle_t handle, const GemmProblem& problem,
                          size_t workspace_bytes, int most,
                          std::vector<cublasLtMatmulAlgo_t>* algorithms);

// Whether an algorithm, perhaps read from a file, is valid for the problem, deterministic, and content with the workspace.
bool AlgorithmFits(const CublasLt& lt, cublasLtHandle_t handle, const GemmProblem& problem,
                   size_t workspace_bytes, const cublasLtMatmulAlgo_t& algorithm);

// Enqueues one product.
int32_t RunLt(const CublasLt& lt, cublasLtHandle_t handle, const GemmProblem& problem,
              LtLayouts& layouts, const GemmOperands& operands,
              const cublasLtMatmulAlgo_t& algorithm, float alpha, void* workspace,
              size_t workspace_bytes, cudaStream_t stream);

}  // namespace mt::cuda
