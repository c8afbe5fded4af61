/* Names of operations, for messages, overrides in the job spec and the resolved table. */
#ifndef MT_KERNELS_ABI_OPERATION_NAMES_H_
#define MT_KERNELS_ABI_OPERATION_NAMES_H_

#include <stddef.h>
#include <stdint.h>

/* Null for a number that is no operation. */
static inline const char* mt_operation_name(int32_t operation) {
  static const char* const names[] = {NULL,
                                      "fill",
                                      "fill_normal",
                                      "copy",
                                      "add",
                                      "scale",
                                      "squared_sum",
                                      "matmul",
                                      "embedding_forward",
                                      "embedding_backward",
                                      "rmsnorm_forward",
                                      "rmsnorm_backward",
                                      "rope",
                                      "attention_forward",
                                      "attention_backward",
                                      "swiglu_forward",
                                      "swiglu_backward",
                                      "cross_entropy_statistics",
                                      "cross_entropy_gradient",
                                      "adamw",
                                      "cross_entropy_combine",
                                      "sum",
                                      "clip_factor",
                                      "column_sum",
                                      "layernorm_forward",
                                      "layernorm_backward",
                                      "gelu_forward",
                                      "gelu_backward",
                                      "qk_norm_rope_forward",
                                      "qk_norm_rope_backward",
                                      "amax",
                                      "quantize",
                                      "moe_route_forward",
                                      "moe_route_backward",
                                      "moe_sort",
                                      "moe_gather",
                                      "moe_combine",
                                      "moe_combine_backward",
                                      "grouped_matmul",
                                      "grouped_column_sum",
                                      "mla_expand_forward",
                                      "mla_expand_backward",
                                      "balance_update"};
  const int32_t count = (int32_t)(sizeof names / sizeof names[0]);
  return operation > 0 && operation < count ? names[operation] : NULL;
}

#endif /* MT_KERNELS_ABI_OPERATION_NAMES_H_ */
