// The CUDA backend's operations: the formulas of kernels/abi/mt_backend.h as kernels and their launchers. Arguments have been
// checked against the contract (kernels/host) and against Supports (dispatch.h); data are F32 or BF16 unless stated.
//
// A launcher enqueues on launch.stream and returns MT_OK or a code whose message says call and place; it allocates nothing and
// never waits. What a kernel computes, and in which order it adds, depends on the sizes alone, never on the device or on timing.
#pragma once

#include <cstdint>

#include "kernels/abi/mt_backend.h"
#include "kernels/cuda/vendor/vendor.h"

namespace mt::cuda {

struct Launch {
  cudaStream_t stream = nullptr;
  int multiprocessors =
      1;  // for grids of loops that go on to the next piece; may not change any result
};

// elementwise.cu, reductions.cu, optimizer.cu, quantize.cu
int32_t Fill(const mt_fill_args& args, const Launch& launch);  // also F64, I32, I64, U8
int32_t FillNormal(const mt_fill_normal_args& args, const Launch& launch);
int32_t Copy(const mt_copy_args& args, const Launch& launch);  // F32, F64, BF16 in any combination
int32_t Add(const mt_add_args& args, const Launch& launch);
int32_t Scale(const mt_scale_args& args, const Launch& launch);
int32_t SquaredSum(const mt_squared_sum_args& args, const Launch& launch);
int32_t Sum(const mt_squared_sum_args& args, const Launch& launch);
int64_t SumWorkspace(const mt_squared_sum_args& args);
int32_t ClipFactor(const mt_clip_factor_args& args, const Launch& launch);
int32_t ColumnSum(const mt_column_sum_args& args, const Launch& launch);
int64_t ColumnSumWorkspace(const mt_column_sum_args& args);
int32_t BalanceUpdate(const mt_balance_update_args& args, const Launch& launch);
int32_t AdamW(const mt_adamw_args& args, const Launch& launch);
int32_t Amax(const mt_amax_args& args, const Launch& launch);
int32_t Quantize(const mt_quantize_args& args, const Launch& launch);

// embedding.cu
int32_t EmbeddingForward(const mt_embedding_args& args, const Launch& launch);
int32_t EmbeddingBackward(const mt_embedding_args& args, const Launch& launch);
int64_t EmbeddingBackwardWorkspace(const mt_embedding_args& args);

// rmsnorm.cu, layernorm.cu
int32_t RmsNormForward(const mt_rmsnorm_args& args, const Launch& launch);
int32_t RmsNormBackward(const mt_rmsnorm_args& args, const Launch& launch);
int64_t RmsNormBackwardWorkspace(const mt_rmsnorm_args& args);
int32_t LayerNormForward(const mt_layernorm_args& args, const Launch& launch);
int32_t LayerNormBackward(const mt_layernorm_args& args, const Launch& launch);
int64_t LayerNormBackwardWorkspace(const mt_layernorm_args& args);

// rope.cu
int32_t Rope(const mt_rope_args& args, const Launch& launch);
int32_t QkNormRopeForward(const mt_qk_norm_rope_args& args, const Launch& launch);
int32_t QkNormRopeBackward(const mt_qk_norm_rope_args& args, const Launch& launch);
int64_t QkNormRopeBackwardWorkspace(const mt_qk_norm_rope_args& args);

// activation.cu
int32_t SwigluForward(const mt_swiglu_args& args, const Launch& launch);
int32_t SwigluBackward(const mt_swiglu_args& args, const Launch& launch);
int32_t GeluForward(const mt_gelu_args& args, const Launch& launch);
int32_t GeluBackward(const mt_gelu_args& args, const Launch& launch);

// cross_entropy.cu
int32_t CrossEntropyStatistics(const mt_cross_entropy_args& args, const Launch& launch);
int32_t CrossEntropyCombine(const mt_cross_entropy_combine_args& args, const Launch& launch);
int32_t CrossEntropyGradient(const mt_cross_entropy_args& args, const Launch& launch);

// moe_route*.cu, moe_sort.cu, moe_rows.cu. Functions named `Supports` say why not through host::Fail.
bool MoeRouteSupports(int32_t operation, const mt_moe_route_args& args);
int32_t MoeRouteForward(const mt_moe_route_args& args, const Launch& launch);
int64_t MoeRouteForwardWorkspace(const mt_moe_route_args& args);
int32_t MoeRouteBackward(const mt_moe_route_args& args, const Launch& launch);
bool MoeSortSupports(int32_t operation, const mt_moe_sort_args& args);
int32_t MoeSort(const mt_moe_sort_args& args, const Launch& launch);
int64_t MoeSortWorkspace(const mt_moe_sort_args& args);
int32_t MoeGather(const mt_moe_rows_args& args, const Launch& launch);
int32_t MoeCombine(const mt_moe_rows_args& args, const Launch& launch);
int32_t MoeCombineBackward(const mt_moe_rows_args& args, const Launch& launch);

// grouped_matmul*.cu, grouped_column_sum.cu
bool GroupedMatmulSupports(int32_t operation, const mt_grouped_matmul_args& args);
const char* GroupedMatmulName(const mt_grouped_matmul_args& args);
int32_t GroupedMatmul(const mt_grouped_matmul_args& args, const Launch& launch);
int32_t GroupedColumnSum(const mt_grouped_column_sum_args& args, const Launch& launch);

// mla_expand.cu
int32_t MlaExpandForward(const mt_mla_expand_args& args, const Launch& launch);
int32_t MlaExpandBackward(const mt_mla_expand_args& args, const Launch& launch);

// attention_flash*.cu: our own kernels, every type and head size up to 256. cuDNN's are in attention_cudnn.h.
bool FlashAttentionSupports(const mt_attention_args& args,
                            bool backward);  // says why not through host::Fail
const char* FlashAttentionName(const mt_attention_args& args, bool backward);
int32_t FlashAttentionForward(const mt_attention_args& args, const Launch& launch);
int32_t FlashAttentionBackward(const mt_attention_args& args, const Launch& launch);
int64_t FlashAttentionWorkspace(const mt_attention_args& args, bool backward);

}  // namespace mt::cuda
