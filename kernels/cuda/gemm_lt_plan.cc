#include "kernels/cuda/gemm_lt_plan.h"

#include <algorithm>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

// Partial sums of a split product are kept in float32 and added in a separate step. The other schemes add in the output (in the
// order in which blocks finish, or at least rounding each time) or keep partial sums in the output's type.
constexpr uint32_t kReductionSchemes =
    CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

template <typename Value>
cublasStatus_t Set(const CublasLt& lt, cublasLtMatmulDescOpaque_t* descriptor,
                   cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  return lt.cublasLtMatmulDescSetAttribute(descriptor, attribute, &value, sizeof value);
}

template <typename Value>
cublasStatus_t Set(const CublasLt& lt, cublasLtMatmulPreferenceOpaque_t* preference,
                   cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
  return lt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value);
}

bool IsDeterministic(const CublasLt& lt, const cublasLtMatmulAlgo_t& algorithm) {
  uint32_t scheme = 0;
  size_t written = 0;
  const cublasStatus_t status = lt.cublasLtMatmulAlgoConfigGetAttribute(
      &algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme, &written);
  return status == CUBLAS_STATUS_SUCCESS && (scheme & ~kReductionSchemes) == 0;
}

// For questions about a plan: the library looks at whether pointers are set and how they are aligned, not behind them.
GemmOperands Placeholders(const GemmProblem& p) {
  GemmOperands operands;
  if (p.bias)
    operands.bias = reinterpret_cast<const void*>(static_cast<uintptr_t>(p.bias_alignment));
  if (ElementBytes(p.a_type) == 1)
    operands.a_scale = operands.b_scale = reinterpret_cast<const float*>(uintptr_t{256});
  return operands;
}

}  // namespace

int32_t LtFailed(const CublasLt& lt, cublasStatus_t status, const char* call, const char* file,
                 int line) {
  const int32_t code = status == CUBLAS_STATUS_NOT_SUPPORTED  ? MT_ERROR_UNSUPPORTED
                       : status == CUBLAS_STATUS_ALLOC_FAILED ? MT_ERROR_MEMORY
                                                              : MT_ERROR_DEVICE;
  return host::Fail(code, MT_OP_MATMUL, "%s at %s:%d: %s", call, file, line,
                    lt.cublasLtGetStatusName(status));
}

cudaDataType_t CudaType(int32_t type) {
  switch (type) {
    case MT_BF16:
      return CUDA_R_16BF;
    case MT_F8_E4M3:
      return CUDA_R_8F_E4M3;
    case MT_F8_E5M2:
      return CUDA_R_8F_E5M2;
    default:
      return CUDA_R_32F;
  }
}

int32_t MakeLayouts(const CublasLt& lt, const GemmProblem& p, LtLayouts* layouts) {
  const auto extent = [](int64_t value) { return static_cast<uint64_t>(value); };
  MT_LT(cublasLtMatrixLayoutInit_internal(&layouts->a, sizeof layouts->a, CudaType(p.a_type),
                                          extent(p.transpose_a ? p.depth : p.rows),
                                          extent(StoredColumnsOfA(p)), p.lda));
  MT_LT(cublasLtMatrixLayoutInit_internal(&layouts->b, sizeof layouts->b, CudaType(p.b_type),
                                          extent(p.transpose_b ? p.columns : p.depth),
                                          extent(StoredColumnsOfB(p)), p.ldb));
  MT_LT(cublasLtMatrixLayoutInit_internal(&layouts->d, sizeof layouts->d, CudaType(p.d_type),
                                          extent(p.rows), extent(p.columns), p.ldd));
  return MT_OK;
}

int32_t MakeDescriptor(const CublasLt& lt, const GemmProblem& p, const GemmOperands& operands,
                       cublasLtMatmulDescOpaque_t* descriptor) {
  const cublasComputeType_t compute = p.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  MT_LT(cublasLtMatmulDescInit_internal(descriptor, sizeof *descriptor, compute, CUDA_R_32F));
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    const cublasStatus_t status = Set(lt, descriptor, attribute, value);
    return status == CUBLAS_STATUS_SUCCESS ? MT_OK
                                           : LtFailed(lt, status, "cublasLtMatmulDescSetAttribute",
                                                      __FILE__, static_cast<int>(attribute));
  };
  const auto op = [](bool transpose) {
    return static_cast<int32_t>(transpose ? CUBLAS_OP_T : CUBLAS_OP_N);
  };
  int32_t code = set(CUBLASLT_MATMUL_DESC_TRANSA, op(p.transpose_a));
  if (code == MT_OK) code = set(CUBLASLT_MATMUL_DESC_TRANSB, op(p.transpose_b));
  if (code == MT_OK && p.bias) {
    code = set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
    if (code == MT_OK)
      code = set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(CudaType(p.d_type)));
    if (code == MT_OK) code = set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias);
  }
  if (code == MT_OK && p.fast_accumulation) code = set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1});
  if (code == MT_OK && operands.a_scale != nullptr)
    code = set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, operands.a_scale);
  if (code == MT_OK && operands.b_scale != nullptr)
    code = set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, operands.b_scale);
  return code;
}

int32_t ProposeAlgorithms(const CublasLt& lt, cublasLtHandle_t handle, const GemmProblem& p,
                          size_t workspace_bytes, int most,
                          std::vector<cublasLtMatmulAlgo_t>* algorithms) {
  LtLayouts layouts;
  if (const int32_t code = MakeLayouts(lt, p, &layouts); code != MT_OK) return code;
  cublasLtMatmulDescOpaque_t descriptor;
  if (const int32_t code = MakeDescriptor(lt, p, Placeholders(p), &descriptor); code != MT_OK)
    return code;
  cublasLtMatmulPreferenceOpaque_t preference;
  MT_LT(cublasLtMatmulPreferenceInit_internal(&preference, sizeof preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    return Set(lt, &preference, attribute, value) == CUBLAS_STATUS_SUCCESS;
  };
  const auto bytes = [](int32_t alignment) { return static_cast<uint32_t>(alignment); };
  const bool all_set =
      set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes)) &&
      set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, kReductionSchemes) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(p.a_alignment)) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(p.b_alignment)) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(p.d_alignment)) &&
      set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(p.d_alignment));
  if (!all_set)
    return host::Fail(MT_ERROR_DEVICE, MT_OP_MATMUL, "cublasLtMatmulPreferenceSetAttribute failed");
  // A few more than asked for, because some may be refused here.
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most) * 2);
  int found = 0;
  MT_LT(cublasLtMatmulAlgoGetHeuristic(handle, &descriptor, &layouts.a, &layouts.b, &layouts.d,
                                       &layouts.d, &preference, static_cast<int>(results.size()),
                                       results.data(), &found));
  algorithms->clear();
  for (int i = 0; i < found && algorithms->size() < static_cast<size_t>(most); ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS && IsDeterministic(lt, result.algo))
      algorithms->push_back(result.algo);
  }
  if (!algorithms->empty()) return MT_OK;
  return host::Fail(MT_ERROR_UNSUPPORTED, MT_OP_MATMUL,
                    "cuBLASLt %s has no deterministic algorithm for %s",
                    VersionText(lt.version).c_str(), p.Text().c_str());
}

bool AlgorithmFits(const CublasLt& lt, cublasLtHandle_t handle, const GemmProblem& p,
                   size_t workspace_bytes, const cublasLtMatmulAlgo_t& algorithm) {
  LtLayouts layouts;
  cublasLtMatmulDescOpaque_t descriptor;
  if (MakeLayouts(lt, p, &layouts) != MT_OK ||
      MakeDescriptor(lt, p, Placeholders(p), &descriptor) != MT_OK)
    return false;
  cublasLtMatmulHeuristicResult_t result = {};
  const cublasStatus_t status = lt.cublasLtMatmulAlgoCheck(
      handle, &descriptor, &layouts.a, &layouts.b, &layouts.d, &layouts.d, &algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.state == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= workspace_bytes && IsDeterministic(lt, algorithm);
}

int32_t RunLt(const CublasLt& lt, cublasLtHandle_t handle, const GemmProblem& p, LtLayouts& layouts,
              const GemmOperands& operands, const cublasLtMatmulAlgo_t& algorithm, float alpha,
              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  cublasLtMatmulDescOpaque_t descriptor;
  if (const int32_t code = MakeDescriptor(lt, p, operands, &descriptor); code != MT_OK) return code;
  const float beta = p.accumulate ? 1.0f : 0.0f;
  MT_LT(cublasLtMatmul(handle, &descriptor, &alpha, operands.a, &layouts.a, operands.b, &layouts.b,
                       &beta, operands.d, &layouts.d, operands.d, &layouts.d, &algorithm, workspace,
                       workspace_bytes, stream));
  return MT_OK;
}

}  // namespace mt::cuda
