#include "worker/model/attention.h"

#include <cmath>

namespace mt {
namespace {

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

mt_attention_args AttentionArguments(const ModelContext& context, const AttentionActivations& a) {
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
          .o = a.output,
          .o_stride = s.query,
          .lse = a.lse};
}

}  // namespace

absl::StatusOr<void*> AttentionForward(ModelContext& context, const AttentionWeights& w,
                                       const void* x, const AttentionActivations& a,
                                       const AttentionScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  MT_RETURN_IF_ERROR(LinearForward(context, w.qkv, rows, a.qkv_scales, a.qkv));
  MT_RETURN_IF_ERROR(Rope(context, a.qkv, scratch.rope_table, /*inverse=*/false));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_FORWARD>(AttentionArguments(context, a)));
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
  mt_attention_args attention = AttentionArguments(context, a);
  const PackedQkv packed(context, scratch.qkv_gradient);
  attention.o_gradient = scratch.output_gradient;
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
