// The reference backend's operations: what the formulas of kernels/abi/mt_backend.h say, in plain
// loops on one thread. Data are float32, float64 or bfloat16 (FP8 for MATMUL and QUANTIZE); every
// sum and every function is computed in float64, terms added in increasing index, and rounded once
// when stored. Arguments have been checked.
#pragma once

#include <cstdint>

#include "kernels/abi/mt_backend.h"
#include "kernels/reference/types.h"

namespace mt::reference {

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
void Quantize(const mt_quantize_args& args);
void AdamW(const mt_adamw_args& args);
void Matmul(const mt_matmul_args& args);
void EmbeddingForward(const mt_embedding_args& args);
void EmbeddingBackward(const mt_embedding_args& args);
void RmsNormForward(const mt_rmsnorm_args& args);
void RmsNormBackward(const mt_rmsnorm_args& args);
void LayerNormForward(const mt_layernorm_args& args);
void LayerNormBackward(const mt_layernorm_args& args);
void Rope(const mt_rope_args& args);
void QkNormRopeForward(const mt_qk_norm_rope_args& args);
void QkNormRopeBackward(const mt_qk_norm_rope_args& args);
void GeluForward(const mt_gelu_args& args);
void GeluBackward(const mt_gelu_args& args);
void SwigluForward(const mt_swiglu_args& args);
void SwigluBackward(const mt_swiglu_args& args);
void AttentionForward(const mt_attention_args& args);
void AttentionBackward(const mt_attention_args& args);
void CrossEntropyStatistics(const mt_cross_entropy_args& args);
void CrossEntropyGradient(const mt_cross_entropy_args& args);
void CrossEntropyCombine(const mt_cross_entropy_combine_args& args);
void MoeRouteForward(const mt_moe_route_args& args);
void MoeRouteBackward(const mt_moe_route_args& args);
void MoeSort(const mt_moe_sort_args& args);
void MoeGather(const mt_moe_rows_args& args);
void MoeCombine(const mt_moe_rows_args& args);
void MoeCombineBackward(const mt_moe_rows_args& args);
void GroupedMatmul(const mt_grouped_matmul_args& args);
void GroupedColumnSum(const mt_grouped_column_sum_args& args);
void MlaExpandForward(const mt_mla_expand_args& args);
void MlaExpandBackward(const mt_mla_expand_args& args);
void BalanceUpdate(const mt_balance_update_args& args);

// Bytes of scratch that the operation needs; 0 for most.
int64_t WorkspaceBytes(int32_t operation, const void* args);

}  // namespace mt::reference
