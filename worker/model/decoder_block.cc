#include "worker/model/decoder_block.h"

#include <cmath>

namespace mt {
namespace {

mt_rmsnorm_args NormArguments(const ModelContext& context, const NormWeight& norm, void* rstd) {
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .rows = context.shape.stream_rows,
          .columns = context.shape.hidden,
          .eps = context.norm_eps,
          .weight = norm.weight,
          .rstd = rstd};
}

// q, k and v are column ranges of one packed (N, P) tensor.
struct PackedQkv {
  PackedQkv(const ModelContext& context, void* qkv)
      : q(qkv),
        k(context.At(qkv, context.shape.query)),
        v(context.At(qkv, context.shape.query + context.shape.kv_heads * context.shape.head_dim)) {}
  void *q, *k, *v;
};

// Queries and keys are adjacent heads, so one call rotates both.
absl::Status Rope(ModelContext& context, void* qkv, const void* table, bool inverse) {
  const RankShape& s = context.shape;
  return context.Run<MT_OP_ROPE>({.dtype = context.dtype,
                                  .data = qkv,
                                  .sequence = s.sequence,
                                  .batch = s.batch,
                                  .heads = s.heads + s.kv_heads,
                                  .head_dim = s.head_dim,
                                  .row_stride = s.qkv,
                                  .cos_sin = table,
                                  .inverse = inverse});
}

mt_attention_args AttentionArguments(const ModelContext& context, const BlockActivations& a) {
  const RankShape& s = context.shape;
  const PackedQkv packed(context, a.qkv);
  return {.dtype = context.dtype,
          .sequence = s.sequence,
          .batch = s.batch,
          .heads = s.heads,
          .kv_heads = s.kv_heads,
          .head_dim = s.head_dim,
          .scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim)),
          .causal = 1,
          .q = packed.q,
          .q_stride = s.qkv,
          .k = packed.k,
          .k_stride = s.qkv,
          .v = packed.v,
          .v_stride = s.qkv,
          .o = a.attention,
          .o_stride = s.query,
          .lse = a.attention_lse};
}

// ---- attention half

absl::Status AttentionForward(ModelContext& context, const BlockWeights& w, const BlockInput& input,
                              const BlockActivations& a, const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  mt_rmsnorm_args norm = NormArguments(context, w.first_norm, a.first_norm_rstd);
  norm.x = input.delta == nullptr ? a.input : input.delta;
  norm.residual = input.residual;
  norm.sum = input.delta == nullptr ? nullptr : a.input;
  norm.output = a.first_norm;
  norm.amax = a.qkv_scales.input.amax;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_RMSNORM_FORWARD>(norm));
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.first_norm, scratch.gathered_input));
  MT_RETURN_IF_ERROR(LinearForward(context, w.qkv, x, a.qkv_scales, a.qkv));
  MT_RETURN_IF_ERROR(Rope(context, a.qkv, scratch.rope_table, /*inverse=*/false));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_FORWARD>(AttentionArguments(context, a)));
  MT_RETURN_IF_ERROR(context.Measure(a.attention, s.rows * s.query, a.output_scales.input.amax));
  MT_RETURN_IF_ERROR(LinearForward(context, w.output, a.attention, a.output_scales, scratch.delta));
  MT_ASSIGN_OR_RETURN(void* delta, context.SumToStream(scratch.delta));
  norm = NormArguments(context, w.second_norm, a.second_norm_rstd);
  norm.x = delta;
  norm.residual = a.input;
  norm.sum = a.middle;
  norm.output = a.second_norm;
  norm.amax = a.gate_up_scales.input.amax;
  return context.Run<MT_OP_RMSNORM_FORWARD>(norm);
}

// scratch.middle_gradient (of `middle`) -> scratch.gradient (of `input`). Leaves
// scratch.qkv_gradient for the weights. Returns all rows of the middle gradient.
absl::StatusOr<const void*> AttentionBackwardInput(ModelContext& context, const BlockWeights& w,
                                                   const BlockActivations& a,
                                                   const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* dy,
                      context.GatherRows(scratch.middle_gradient, scratch.gathered_gradient));
  MT_RETURN_IF_ERROR(
      LinearInputGradient(context, w.output, dy, a.output_scales, scratch.attention_gradient));
  mt_attention_args attention = AttentionArguments(context, a);
  const PackedQkv packed(context, scratch.qkv_gradient);
  attention.o_gradient = scratch.attention_gradient;
  attention.o_gradient_stride = s.query;
  attention.dq = packed.q;
  attention.dk = packed.k;
  attention.dv = packed.v;
  attention.dq_stride = attention.dk_stride = attention.dv_stride = s.qkv;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_BACKWARD>(attention));
  MT_RETURN_IF_ERROR(Rope(context, scratch.qkv_gradient, scratch.rope_table, /*inverse=*/true));
  MT_RETURN_IF_ERROR(
      context.Measure(scratch.qkv_gradient, s.rows * s.qkv, a.qkv_scales.output_gradient.amax));
  MT_RETURN_IF_ERROR(LinearInputGradient(context, w.qkv, scratch.qkv_gradient, a.qkv_scales,
                                         scratch.norm_gradient));
  MT_ASSIGN_OR_RETURN(void* norm_gradient, context.SumToStream(scratch.norm_gradient));
  mt_rmsnorm_args norm = NormArguments(context, w.first_norm, a.first_norm_rstd);
  norm.sum = a.input;
  norm.output_gradient = norm_gradient;
  norm.residual_gradient = scratch.middle_gradient;
  norm.input_gradient = scratch.gradient;
  norm.weight_gradient = w.first_norm.weight_gradient;
  norm.amax = a.input_gradient_amax;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_RMSNORM_BACKWARD>(norm));
  return dy;
}

absl::Status AttentionBackwardWeight(ModelContext& context, const BlockWeights& w,
                                     const BlockActivations& a, const BlockScratch& scratch,
                                     const void* dy) {
  MT_RETURN_IF_ERROR(LinearWeightGradient(context, w.output, dy, a.attention, a.output_scales));
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.first_norm, scratch.gathered_input));
  return LinearWeightGradient(context, w.qkv, scratch.qkv_gradient, x, a.qkv_scales);
}

// ---- feed-forward half

absl::Status GateUpForward(ModelContext& context, const BlockWeights& w, const BlockActivations& a,
                           const BlockScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.second_norm, scratch.gathered_input));
  return LinearForward(context, w.gate_up, x, a.gate_up_scales, a.gate_up);
}

absl::StatusOr<void*> DownForward(ModelContext& context, const BlockWeights& w,
                                  const BlockActivations& a, const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_SWIGLU_FORWARD>({.dtype = context.dtype,
                                                        .rows = s.rows,
                                                        .columns = s.ffn,
                                                        .gate_up = a.gate_up,
                                                        .output = scratch.activated,
                                                        .amax = a.down_scales.input.amax}));
  MT_RETURN_IF_ERROR(
      LinearForward(context, w.down, scratch.activated, a.down_scales, scratch.delta));
  return context.SumToStream(scratch.delta);
}

// scratch.gradient (of the block's output) -> scratch.middle_gradient (of `middle`). Leaves
// scratch.activated_again and, in a.gate_up, its gradient for the weights. Returns all rows of the
// output gradient.
absl::StatusOr<const void*> FeedForwardBackwardInput(ModelContext& context, const BlockWeights& w,
                                                     const BlockActivations& a,
                                                     const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* dy,
                      context.GatherRows(scratch.gradient, scratch.gathered_gradient));
  MT_RETURN_IF_ERROR(
      LinearInputGradient(context, w.down, dy, a.down_scales, scratch.activated_gradient));
  MT_RETURN_IF_ERROR(
      context.Run<MT_OP_SWIGLU_BACKWARD>({.dtype = context.dtype,
                                          .rows = s.rows,
                                          .columns = s.ffn,
                                          .gate_up = a.gate_up,
                                          .output = scratch.activated_again,
                                          .output_gradient = scratch.activated_gradient,
                                          .gate_up_gradient = a.gate_up,
                                          .amax = a.gate_up_scales.output_gradient.amax}));
  MT_RETURN_IF_ERROR(
      LinearInputGradient(context, w.gate_up, a.gate_up, a.gate_up_scales, scratch.norm_gradient));
  MT_ASSIGN_OR_RETURN(void* norm_gradient, context.SumToStream(scratch.norm_gradient));
  mt_rmsnorm_args norm = NormArguments(context, w.second_norm, a.second_norm_rstd);
  norm.sum = a.middle;
  norm.output_gradient = norm_gradient;
  norm.residual_gradient = scratch.gradient;
  norm.input_gradient = scratch.middle_gradient;
  norm.weight_gradient = w.second_norm.weight_gradient;
  norm.amax = a.output_scales.output_gradient.amax;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_RMSNORM_BACKWARD>(norm));
  return dy;
}

absl::Status FeedForwardBackwardWeight(ModelContext& context, const BlockWeights& w,
                                       const BlockActivations& a, const BlockScratch& scratch,
                                       const void* dy) {
  MT_RETURN_IF_ERROR(
      LinearWeightGradient(context, w.down, dy, scratch.activated_again, a.down_scales));
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.second_norm, scratch.gathered_input));
  return LinearWeightGradient(context, w.gate_up, a.gate_up, x, a.gate_up_scales);
}

}  // namespace

absl::StatusOr<void*> BlockForward(ModelContext& context, const BlockWeights& weights,
                                   const BlockInput& input, const BlockActivations& activations,
                                   const BlockScratch& scratch) {
  MT_RETURN_IF_ERROR(AttentionForward(context, weights, input, activations, scratch));
  MT_RETURN_IF_ERROR(GateUpForward(context, weights, activations, scratch));
  return DownForward(context, weights, activations, scratch);
}

absl::Status BlockRecompute(ModelContext& context, const BlockWeights& weights,
                            const BlockActivations& activations, const BlockScratch& scratch) {
  MT_RETURN_IF_ERROR(AttentionForward(context, weights, {}, activations, scratch));
  return GateUpForward(context, weights, activations, scratch);
}

absl::Status BlockBackward(ModelContext& context, const BlockWeights& weights,
                           const BlockActivations& activations, const BlockScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* output_gradient,
                      FeedForwardBackwardInput(context, weights, activations, scratch));
  MT_RETURN_IF_ERROR(
      FeedForwardBackwardWeight(context, weights, activations, scratch, output_gradient));
  MT_ASSIGN_OR_RETURN(const void* middle_gradient,
                      AttentionBackwardInput(context, weights, activations, scratch));
  return AttentionBackwardWeight(context, weights, activations, scratch, middle_gradient);
}

}  // namespace mt
