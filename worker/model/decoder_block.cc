#include "worker/model/decoder_block.h"

#include <cmath>

namespace mt {
namespace {

mt_rmsnorm_args NormArguments(const ModelContext& context, const void* weight, void* rstd) {
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .rows = context.shape.stream_rows,
          .columns = context.shape.hidden,
          .eps = context.norm_eps,
          .weight = weight,
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
  MT_RETURN_IF_ERROR(context.Run<MT_OP_RMSNORM_FORWARD>(norm));
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.first_norm, scratch.gathered_input));
  MT_RETURN_IF_ERROR(context.Linear(x, w.qkv, a.qkv, s.rows, s.hidden, s.qkv));
  MT_RETURN_IF_ERROR(Rope(context, a.qkv, scratch.rope_table, /*inverse=*/false));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_FORWARD>(AttentionArguments(context, a)));
  MT_RETURN_IF_ERROR(
      context.Linear(a.attention, w.output, scratch.delta, s.rows, s.query, s.hidden));
  MT_ASSIGN_OR_RETURN(void* delta, context.SumToStream(scratch.delta));
  norm = NormArguments(context, w.second_norm, a.second_norm_rstd);
  norm.x = delta;
  norm.residual = a.input;
  norm.sum = a.middle;
  norm.output = a.second_norm;
  return context.Run<MT_OP_RMSNORM_FORWARD>(norm);
}

// scratch.middle_gradient (of `middle`) -> scratch.gradient (of `input`). Leaves
// scratch.qkv_gradient for the weights. Returns all rows of the middle gradient.
absl::StatusOr<const void*> AttentionBackwardInput(ModelContext& context, const BlockWeights& w,
                                                   const BlockWeights& g, const BlockActivations& a,
                                                   const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* dy,
                      context.GatherRows(scratch.middle_gradient, scratch.gathered_gradient));
  MT_RETURN_IF_ERROR(context.LinearInputGradient(dy, w.output, scratch.attention_gradient, s.rows,
                                                 s.query, s.hidden));
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
  MT_RETURN_IF_ERROR(context.LinearInputGradient(scratch.qkv_gradient, w.qkv, scratch.norm_gradient,
                                                 s.rows, s.hidden, s.qkv));
  MT_ASSIGN_OR_RETURN(void* norm_gradient, context.SumToStream(scratch.norm_gradient));
  mt_rmsnorm_args norm = NormArguments(context, w.first_norm, a.first_norm_rstd);
  norm.sum = a.input;
  norm.output_gradient = norm_gradient;
  norm.residual_gradient = scratch.middle_gradient;
  norm.input_gradient = scratch.gradient;
  norm.weight_gradient = g.first_norm;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_RMSNORM_BACKWARD>(norm));
  return dy;
}

absl::Status AttentionBackwardWeight(ModelContext& context, const BlockWeights& g,
                                     const BlockActivations& a, const BlockScratch& scratch,
                                     const void* dy) {
  const RankShape& s = context.shape;
  MT_RETURN_IF_ERROR(context.LinearWeightGradient(dy, a.attention, g.output, s.rows, s.query,
                                                  s.hidden, context.first_micro_batch));
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.first_norm, scratch.gathered_input));
  return context.LinearWeightGradient(scratch.qkv_gradient, x, g.qkv, s.rows, s.hidden, s.qkv,
                                      context.first_micro_batch);
}

// ---- feed-forward half

absl::Status GateUpForward(ModelContext& context, const BlockWeights& w, const BlockActivations& a,
                           const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.second_norm, scratch.gathered_input));
  return context.Linear(x, w.gate_up, a.gate_up, s.rows, s.hidden, 2 * s.ffn);
}

absl::StatusOr<void*> DownForward(ModelContext& context, const BlockWeights& w,
                                  const BlockActivations& a, const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_SWIGLU_FORWARD>({.dtype = context.dtype,
                                                        .rows = s.rows,
                                                        .columns = s.ffn,
                                                        .gate_up = a.gate_up,
                                                        .output = scratch.activated}));
  MT_RETURN_IF_ERROR(
      context.Linear(scratch.activated, w.down, scratch.delta, s.rows, s.ffn, s.hidden));
  return context.SumToStream(scratch.delta);
}

// scratch.gradient (of the block's output) -> scratch.middle_gradient (of `middle`). Leaves
// scratch.activated_again and, in a.gate_up, its gradient for the weights. Returns all rows of the
// output gradient.
absl::StatusOr<const void*> FeedForwardBackwardInput(ModelContext& context, const BlockWeights& w,
                                                     const BlockWeights& g,
                                                     const BlockActivations& a,
                                                     const BlockScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* dy,
                      context.GatherRows(scratch.gradient, scratch.gathered_gradient));
  MT_RETURN_IF_ERROR(
      context.LinearInputGradient(dy, w.down, scratch.activated_gradient, s.rows, s.ffn, s.hidden));
  MT_RETURN_IF_ERROR(
      context.Run<MT_OP_SWIGLU_BACKWARD>({.dtype = context.dtype,
                                          .rows = s.rows,
                                          .columns = s.ffn,
                                          .gate_up = a.gate_up,
                                          .output = scratch.activated_again,
                                          .output_gradient = scratch.activated_gradient,
                                          .gate_up_gradient = a.gate_up}));
  MT_RETURN_IF_ERROR(context.LinearInputGradient(a.gate_up, w.gate_up, scratch.norm_gradient,
                                                 s.rows, s.hidden, 2 * s.ffn));
  MT_ASSIGN_OR_RETURN(void* norm_gradient, context.SumToStream(scratch.norm_gradient));
  mt_rmsnorm_args norm = NormArguments(context, w.second_norm, a.second_norm_rstd);
  norm.sum = a.middle;
  norm.output_gradient = norm_gradient;
  norm.residual_gradient = scratch.gradient;
  norm.input_gradient = scratch.middle_gradient;
  norm.weight_gradient = g.second_norm;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_RMSNORM_BACKWARD>(norm));
  return dy;
}

absl::Status FeedForwardBackwardWeight(ModelContext& context, const BlockWeights& g,
                                       const BlockActivations& a, const BlockScratch& scratch,
                                       const void* dy) {
  const RankShape& s = context.shape;
  MT_RETURN_IF_ERROR(context.LinearWeightGradient(dy, scratch.activated_again, g.down, s.rows,
                                                  s.ffn, s.hidden, context.first_micro_batch));
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(a.second_norm, scratch.gathered_input));
  return context.LinearWeightGradient(a.gate_up, x, g.gate_up, s.rows, s.hidden, 2 * s.ffn,
                                      context.first_micro_batch);
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
                           const BlockWeights& gradients, const BlockActivations& activations,
                           const BlockScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* output_gradient,
                      FeedForwardBackwardInput(context, weights, gradients, activations, scratch));
  MT_RETURN_IF_ERROR(
      FeedForwardBackwardWeight(context, gradients, activations, scratch, output_gradient));
  MT_ASSIGN_OR_RETURN(const void* middle_gradient,
                      AttentionBackwardInput(context, weights, gradients, activations, scratch));
  return AttentionBackwardWeight(context, gradients, activations, scratch, middle_gradient);
}

}  // namespace mt
