#include "worker/model/attention.h"

#include "common/spec/rope.h"

namespace mt {
namespace {

// Queries, keys and values as attention reads them: column ranges of the packed (N, P) tensor, or, where heads are normed,
// queries and keys of a (N, R) tensor of their own.
struct Heads {
  Heads(const ModelContext& context, void* qkv, void* rotated)
      : query(rotated == nullptr ? qkv : rotated),
        key(context.At(query, context.shape.query)),
        value(context.At(qkv, Rotated(context))),
        stride(rotated == nullptr ? context.shape.qkv : Rotated(context)) {}
  // R
  static int64_t Rotated(const ModelContext& context) {
    return context.shape.query + context.shape.kv_heads * context.shape.head_dim;
  }
  void *query, *key, *value;
  int64_t stride;  // of queries and keys; P is that of values
};

// Queries and keys are adjacent heads, so one call rotates both.
absl::Status Rope(ModelContext& context, void* qkv, const void* table, bool inverse) {
  const RankShape& s = context.shape;
  if (s.rotary_dim == 0) return absl::OkStatus();
  return context.Run<MT_OP_ROPE>({.dtype = context.dtype,
                                  .data = qkv,
                                  .sequence = s.sequence,
                                  .batch = s.batch,
                                  .heads = s.heads + s.kv_heads,
                                  .head_dim = s.head_dim,
                                  .row_stride = s.qkv,
                                  .first_position = context.first_position,
                                  .cos_sin = table,
                                  .inverse = inverse,
                                  .rotary_dim = static_cast<int32_t>(s.rotary_dim),
                                  .interleaved = context.model.rope().interleaved(),
                                  .positions = context.positions});
}

// Of `heads` heads that begin `offset` columns into both tensors.
mt_qk_norm_rope_args NormRope(const ModelContext& context, const NormWeights& norm, int64_t heads,
                              int64_t offset, const AttentionActivations& a, void* rstd,
                              const AttentionScratch& scratch) {
  const RankShape& s = context.shape;
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .sequence = s.sequence,
          .batch = s.batch,
          .heads = heads,
          .head_dim = s.head_dim,
          .x_stride = s.qkv,
          .y_stride = Heads::Rotated(context),
          .first_position = context.first_position,
          .rotary_dim = static_cast<int32_t>(s.rotary_dim),
          .interleaved = context.model.rope().interleaved(),
          .eps = context.model.norm_eps(),
          .cos_sin = scratch.rope_table,
          .weight = norm.weight,
          .x = context.At(context.NewRows(a.qkv, s.qkv), offset),
          .y = context.At(context.NewRows(a.rotated, Heads::Rotated(context)), offset),
          .rstd = rstd,
          .output_gradient = context.At(scratch.rotated_gradient, offset),
          .input_gradient = context.At(scratch.qkv_gradient, offset),
          .weight_gradient = norm.weight_gradient,
          .positions = context.positions};
}

// What is between W_qkv and attention.
absl::Status PositionHeads(ModelContext& context, const AttentionWeights& w,
                           const AttentionActivations& a, const AttentionScratch& scratch) {
  const RankShape& s = context.shape;
  if (w.query_norm.weight == nullptr)
    return Rope(context, context.NewRows(a.qkv, s.qkv), scratch.rope_table, /*inverse=*/false);
  MT_RETURN_IF_ERROR(context.Run<MT_OP_QK_NORM_ROPE_FORWARD>(
      NormRope(context, w.query_norm, s.heads, 0, a, a.query_rstd, scratch)));
  return context.Run<MT_OP_QK_NORM_ROPE_FORWARD>(
      NormRope(context, w.key_norm, s.kv_heads, s.query, a, a.key_rstd, scratch));
}

// Gradients of what attention read -> scratch.qkv_gradient.
absl::Status PositionHeadsBackward(ModelContext& context, const AttentionWeights& w,
                                   const AttentionActivations& a, const AttentionScratch& scratch) {
  const RankShape& s = context.shape;
  if (w.query_norm.weight == nullptr)
    return Rope(context, scratch.qkv_gradient, scratch.rope_table, /*inverse=*/true);
  MT_RETURN_IF_ERROR(context.Run<MT_OP_QK_NORM_ROPE_BACKWARD>(
      NormRope(context, w.query_norm, s.heads, 0, a, a.query_rstd, scratch)));
  return context.Run<MT_OP_QK_NORM_ROPE_BACKWARD>(
      NormRope(context, w.key_norm, s.kv_heads, s.query, a, a.key_rstd, scratch));
}

mt_attention_args AttentionArguments(const ModelContext& context, const AttentionWeights& w,
                                     const AttentionActivations& a) {
  const RankShape& s = context.shape;
  const Heads heads(context, a.qkv, a.rotated);
  return {.dtype = context.dtype,
          .sequence = s.sequence,
          .batch = s.batch,
          .heads = s.heads,
          .kv_heads = s.kv_heads,
          .head_dim = s.head_dim,
          .scale = AttentionScale(context.model),
          .causal = 1,
          .q = context.NewRows(heads.query, heads.stride),
          .q_stride = heads.stride,
          .k = heads.key,
          .k_stride = heads.stride,
          .v = heads.value,
          .v_stride = s.qkv,
          .o = a.output,
          .o_stride = s.query,
          .lse = a.lse,
          .window = w.window,
          .sinks = w.sinks,
          .sinks_gradient = w.sinks_gradient,
          .sinks_gradient_dtype = context.types.gradient,
          .key_sequence = context.key_sequence(),
          .document_start = context.document_start};
}

}  // namespace

absl::StatusOr<void*> AttentionForward(ModelContext& context, const AttentionWeights& w,
                                       const void* x, const AttentionActivations& a,
                                       const AttentionScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  MT_RETURN_IF_ERROR(
      LinearForward(context, w.qkv, rows, a.qkv_scales, context.NewRows(a.qkv, s.qkv)));
  MT_RETURN_IF_ERROR(PositionHeads(context, w, a, scratch));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_FORWARD>(AttentionArguments(context, w, a)));
  MT_RETURN_IF_ERROR(context.Measure(a.output, s.rows * s.query, a.output_scales.input.amax));
  MT_RETURN_IF_ERROR(
      LinearForward(context, w.output, a.output, a.output_scales, scratch.part.delta));
  return context.SumToStream(scratch.part.delta);
}

absl::StatusOr<void*> AttentionBackwardInput(ModelContext& context, const AttentionWeights& w,
                                             const void* dy, const AttentionActivations& a,
                                             const AttentionScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(dy, scratch.part.gathered_gradient));
  MT_RETURN_IF_ERROR(
      LinearInputGradient(context, w.output, rows, a.output_scales, scratch.output_gradient));
  mt_attention_args attention = AttentionArguments(context, w, a);
  const Heads gradients(context, scratch.qkv_gradient, scratch.rotated_gradient);
  attention.o_gradient = scratch.output_gradient;
  attention.o_gradient_stride = s.query;
  attention.dq = gradients.query;
  attention.dk = gradients.key;
  attention.dv = gradients.value;
  attention.dq_stride = attention.dk_stride = gradients.stride;
  attention.dv_stride = s.qkv;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_BACKWARD>(attention));
  MT_RETURN_IF_ERROR(PositionHeadsBackward(context, w, a, scratch));
  MT_RETURN_IF_ERROR(
      context.Measure(scratch.qkv_gradient, s.rows * s.qkv, a.qkv_scales.output_gradient.amax));
  MT_RETURN_IF_ERROR(LinearInputGradient(context, w.qkv, scratch.qkv_gradient, a.qkv_scales,
                                         scratch.part.norm_gradient));
  return context.SumToStream(scratch.part.norm_gradient);
}

absl::Status AttentionBackwardWeight(ModelContext& context, const AttentionWeights& w,
                                     const void* x, const void* dy, const AttentionActivations& a,
                                     const AttentionScratch& scratch) {
  MT_RETURN_IF_ERROR(LinearWeightGradient(context, w.output,
                                          context.GatheredRows(dy, scratch.part.gathered_gradient),
                                          a.output, a.output_scales));
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  return LinearWeightGradient(context, w.qkv, scratch.qkv_gradient, rows, a.qkv_scales);
}

}  // namespace mt
