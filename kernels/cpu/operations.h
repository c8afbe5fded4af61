// The cpu backend's operations: float32 or bfloat16 in host memory, computed in float32 and rounded
// once when stored. Arguments have been checked and types are those of Supports (backend.cc). Every one splits its work into blocks that do not depend on
// the number of threads, and adds partial sums in block order: the same bits for any number of
// threads.
#pragma once

#include <cstdint>

#include "kernels/abi/mt_backend.h"

namespace mt::cpu {

using Bf16 = uint16_t;  // the bits of a bfloat16

void Fill(const mt_fill_args& args);
void FillNormal(const mt_fill_normal_args& args);
void Copy(const mt_copy_args& args);
void Add(const mt_add_args& args);
void Scale(const mt_scale_args& args);
void SquaredSum(const mt_squared_sum_args& args);
void Sum(const mt_squared_sum_args& args);
void ClipFactor(const mt_clip_factor_args& args);
void ColumnSum(const mt_column_sum_args& args);
void Amax(const mt_amax_args& args);
void AdamW(const mt_adamw_args& args);
int32_t Matmul(const mt_matmul_args& args);
void EmbeddingForward(const mt_embedding_args& args);
void EmbeddingBackward(const mt_embedding_args& args);
void RmsNormForward(const mt_rmsnorm_args& args);
void RmsNormBackward(const mt_rmsnorm_args& args);
void LayerNormForward(const mt_layernorm_args& args);
void LayerNormBackward(const mt_layernorm_args& args);
void Rope(const mt_rope_args& args);
void QkNormRopeForward(const mt_qk_norm_rope_args& args);
void QkNormRopeBackward(const mt_qk_norm_rope_args& args);
void SwigluForward(const mt_swiglu_args& args);
void SwigluBackward(const mt_swiglu_args& args);
void GeluForward(const mt_gelu_args& args);
void GeluBackward(const mt_gelu_args& args);
int32_t AttentionForward(const mt_attention_args& args);
int32_t AttentionBackward(const mt_attention_args& args);
void CrossEntropyStatistics(const mt_cross_entropy_args& args);
void CrossEntropyGradient(const mt_cross_entropy_args& args);
void CrossEntropyCombine(const mt_cross_entropy_combine_args& args);
void MoeRouteForward(const mt_moe_route_args& args);
void MoeRouteBackward(const mt_moe_route_args& args);
void MoeSort(const mt_moe_sort_args& args);
void MoeGather(const mt_moe_rows_args& args);
void MoeCombine(const mt_moe_rows_args& args);
void MoeCombineBackward(const mt_moe_rows_args& args);
int32_t GroupedMatmul(const mt_grouped_matmul_args& args);
void GroupedColumnSum(const mt_grouped_column_sum_args& args);
void MlaExpandForward(const mt_mla_expand_args& args);
void MlaExpandBackward(const mt_mla_expand_args& args);
void BalanceUpdate(const mt_balance_update_args& args);

// Rows of memory, with the vector instructions of this machine.
void Widen(const Bf16* from, int64_t count, float* to);
void Narrow(const float* from, int64_t count, Bf16* to);
// sum[i] += from[i]; `from` is of `dtype`, from element `offset` on.
void Accumulate(int32_t dtype, const void* from, int64_t offset, int64_t count, float* sum);
// Folds what was stored into *amax, if it is not null.
void TakeAmax(int32_t dtype, const void* data, int64_t count, float* amax);

// Scratch in bytes.
int64_t MatmulWorkspace(const mt_matmul_args& args);
int64_t SumWorkspace(const mt_squared_sum_args& args);
int64_t ColumnSumWorkspace(const mt_column_sum_args& args);
int64_t LayerNormBackwardWorkspace(const mt_layernorm_args& args);
int64_t QkNormRopeBackwardWorkspace(const mt_qk_norm_rope_args& args);
int64_t MoeRouteForwardWorkspace(const mt_moe_route_args& args);
int64_t MoeRouteBackwardWorkspace(const mt_moe_route_args& args);
int64_t MoeSortWorkspace(const mt_moe_sort_args& args);
int64_t GroupedMatmulWorkspace(const mt_grouped_matmul_args& args);
int64_t RmsNormBackwardWorkspace(const mt_rmsnorm_args& args);
int64_t AttentionForwardWorkspace(const mt_attention_args& args);
int64_t AttentionBackwardWorkspace(const mt_attention_args& args);

// GFLOP/s of matrix products with the threads of `open`, times 1e9; measured once (about 30 ms),
// then remembered.
double MeasurePeakFlops();
// The instruction set that Highway chose: "AVX3", "AVX2", "SSE2".
const char* InstructionSet();

}  // namespace mt::cpu
