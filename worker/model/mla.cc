#include "worker/model/mla.h"

#include <cmath>

#include "common/spec/model_traits.h"
#include "common/spec/rope.h"

namespace mt {
namespace {

// Of the latents' norms, whatever the model's norm_eps is: transformers (DeepseekV2Attention, DeepseekV3Attention) and the modeling
// files that DeepSeek released leave the norm class's default.
constexpr double kLatentNormEps = 1e-6;

// ---- latents: products and norms on the stream's own rows

// y (S, out) = x (S, in) W^T
absl::Status RowsProduct(ModelContext& context, const void* x, const void* weight, void* y,
                         int64_t in, int64_t out) {
  return context.Product(x, weight, y, context.shape.stream_rows, in, out);
}

mt_rmsnorm_args NormArguments(const ModelContext& context, const NormWeights& weights,
                              const NormActivations& a) {
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .rows = context.shape.stream_rows,
          .columns = weights.columns,
          .eps = kLatentNormEps,
          .weight = weights.weight,
          .rstd = a.rstd};
}

absl::Status LatentForward(ModelContext& context, const LinearLayer& down,
                           const NormWeights& weights, const void* x, void* latent,
                           const NormActivations& a) {
  MT_RETURN_IF_ERROR(RowsProduct(context, x, down.weight, latent, down.in, weights.columns));
  mt_rmsnorm_args norm = NormArguments(context, weights, a);
  norm.x = latent;
  norm.output = a.output;
  return context.Run<MT_OP_RMSNORM_FORWARD>(norm);
}

// partial (N, columns): this rank's part of the normed latent's gradient -> the latent's gradient (S, columns), within it.
absl::StatusOr<void*> LatentBackward(ModelContext& context, const NormWeights& weights,
                                     void* latent, const NormActivations& a, void* partial) {
  MT_ASSIGN_OR_RETURN(void* rows, context.SumToStream(partial, weights.columns));
  mt_rmsnorm_args norm = NormArguments(context, weights, a);
  norm.sum = latent;
  norm.output_gradient = rows;
  norm.input_gradient = rows;
  norm.weight_gradient = weights.weight_gradient;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_RMSNORM_BACKWARD>(norm));
  return rows;
}

// dx (S, C) (+)= dy (S, out) W
absl::Status RowsInputGradient(ModelContext& context, const void* dy, const void* weight, void* dx,
                               int64_t in, int64_t out, bool add) {
  return context.ProductInputGradient(dy, weight, dx, context.shape.stream_rows, in, out, add);
}

// Matrices that are replicated are cleared before a step and always added to.
absl::Status RowsWeightGradient(ModelContext& context, const void* dy, const void* x,
                                void* weight_gradient, int64_t in, int64_t out) {
  return context.ProductWeightGradient(dy, x, weight_gradient, context.shape.stream_rows, in, out,
                                       /*overwrite=*/false);
}

// W_kr: the rows of the key's matrix behind those of the latent.
struct RopeRows {
  RopeRows(const ModelContext& context, const LinearLayer& key_down)
      : weight(static_cast<const char*>(key_down.weight) +
               First(context, key_down) * context.element_bytes()),
        gradient(static_cast<char*>(key_down.weight_gradient) +
                 First(context, key_down) * BytesPerNumber(context.types.gradient)) {}
  const void* weight;  // (rope_dim, C)
  void* gradient;      // (rope_dim, C)

 private:
  static int64_t First(const ModelContext& context, const LinearLayer& key_down) {
    return context.model.mla().kv_rank() * key_down.in;
  }
};

// This rank's rows within a partial sum that SumToStream has summed.
const void* RowsWithin(const ModelContext& context, const void* partial, int64_t width) {
  if (!context.sequence_parallel()) return partial;
  return context.At(const_cast<void*>(partial),
                    context.tensor_rank() * context.shape.stream_rows * width);
}

// ---- queries, keys and values of all rows

// Rotates the last rope_dim of every head's `head_dim` numbers.
absl::Status Rope(ModelContext& context, void* heads, int64_t count, int64_t head_dim,
                  const void* table, bool inverse) {
  const RankShape& s = context.shape;
  const int64_t rope_dim = context.model.mla().rope_dim();
  return context.Run<MT_OP_ROPE>({.dtype = context.dtype,
                                  .data = context.At(heads, head_dim - rope_dim),
                                  .sequence = s.sequence,
                                  .batch = s.batch,
                                  .heads = count,
                                  .head_dim = head_dim,
                                  .row_stride = count * head_dim,
                                  .first_position = context.first_position,
                                  .cos_sin = table,
                                  .inverse = inverse,
                                  .rotary_dim = static_cast<int32_t>(rope_dim),
                                  .interleaved = context.model.rope().interleaved(),
                                  .positions = context.positions});
}

mt_mla_expand_args ExpandArguments(const ModelContext& context, void* key_value, void* key_rope,
                                   void* key, void* value) {
  const v1::MlaSpec& mla = context.model.mla();
  return {.dtype = context.dtype,
          .rows = context.shape.rows,
          .heads = context.shape.heads,
          .nope_dim = mla.nope_dim(),
          .rope_dim = mla.rope_dim(),
          .v_dim = mla.v_dim(),
          .kv = key_value,
          .key_rope = key_rope,
          .key = key,
          .value = value};
}

mt_attention_args AttentionArguments(const ModelContext& context, const MlaActivations& a) {
  const RankShape& s = context.shape;
  const int64_t key_dim = KeyHeadDim(context.model), value_dim = ValueHeadDim(context.model);
  return {.dtype = context.dtype,
          .sequence = s.sequence,
          .batch = s.batch,
          .heads = s.heads,
          .kv_heads = s.heads,
          .head_dim = key_dim,
          .scale = AttentionScale(context.model),
          .causal = 1,
          .q = a.query,
          .q_stride = s.heads * key_dim,
          .k = a.key,
          .k_stride = s.heads * key_dim,
          .v = a.value,
          .v_stride = s.heads * value_dim,
          .o = a.output,
          .o_stride = s.heads * value_dim,
          .lse = a.lse,
          .v_head_dim = value_dim,
          .key_sequence = context.key_sequence(),
          .document_start = context.document_start};
}

absl::Status QueryForward(ModelContext& context, const MlaWeights& w, const void* x,
                          const MlaActivations& a, const MlaScratch& scratch) {
  const RankShape& s = context.shape;
  const int64_t rank = context.model.mla().q_rank();
  if (rank > 0) {
    MT_RETURN_IF_ERROR(
        LatentForward(context, w.query_down, w.query_norm, x, a.query_latent, a.query_norm));
    MT_ASSIGN_OR_RETURN(x, context.GatherRows(a.query_norm.output, scratch.gathered_query, rank));
  } else {
    MT_ASSIGN_OR_RETURN(x, context.GatherRows(x, scratch.part.gathered_input));
  }
  MT_RETURN_IF_ERROR(LinearForward(context, w.query, x, {}, a.query));
  return Rope(context, a.query, s.heads, KeyHeadDim(context.model), scratch.rope_table,
              /*inverse=*/false);
}

absl::Status KeyValueForward(ModelContext& context, const MlaWeights& w, const void* x,
                             const MlaActivations& a, const MlaScratch& scratch) {
  const RankShape& s = context.shape;
  const int64_t rank = context.model.mla().kv_rank(), rope_dim = context.model.mla().rope_dim();
  MT_RETURN_IF_ERROR(LatentForward(context, w.key_down, w.key_norm, x, a.key_latent, a.key_norm));
  MT_ASSIGN_OR_RETURN(const void* normed,
                      context.GatherRows(a.key_norm.output, scratch.gathered_key, rank));
  MT_RETURN_IF_ERROR(LinearForward(context, w.key_value, normed, {}, scratch.key_value));

  void* const rows = context.sequence_parallel() ? scratch.key_rope_rows : scratch.key_rope;
  MT_RETURN_IF_ERROR(
      RowsProduct(context, x, RopeRows(context, w.key_down).weight, rows, w.key_down.in, rope_dim));
  MT_RETURN_IF_ERROR(context.GatherRows(rows, scratch.key_rope, rope_dim).status());
  MT_RETURN_IF_ERROR(
      Rope(context, scratch.key_rope, 1, rope_dim, scratch.rope_table, /*inverse=*/false));
  return context.Run<MT_OP_MLA_EXPAND_FORWARD>(
      ExpandArguments(context, scratch.key_value, scratch.key_rope,
                      context.NewRows(a.key, s.heads * KeyHeadDim(context.model)),
                      context.NewRows(a.value, s.heads * ValueHeadDim(context.model))));
}

// scratch.output_gradient -> the gradients of query, key_value (all rows) and key_rope (a partial sum), rotated back.
absl::Status HeadsBackward(ModelContext& context, const MlaActivations& a,
                           const MlaScratch& scratch) {
  const RankShape& s = context.shape;
  mt_attention_args attention = AttentionArguments(context, a);
  attention.o_gradient = scratch.output_gradient;
  attention.o_gradient_stride = attention.o_stride;
  attention.dq = scratch.query_gradient;
  attention.dk = scratch.key_gradient;
  attention.dv = scratch.value_gradient;
  attention.dq_stride = attention.q_stride;
  attention.dk_stride = attention.k_stride;
  attention.dv_stride = attention.v_stride;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_BACKWARD>(attention));
  MT_RETURN_IF_ERROR(Rope(context, scratch.query_gradient, s.heads, KeyHeadDim(context.model),
                          scratch.rope_table, /*inverse=*/true));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MLA_EXPAND_BACKWARD>(
      ExpandArguments(context, scratch.key_value_gradient, scratch.key_rope_gradient,
                      scratch.key_gradient, scratch.value_gradient)));
  return Rope(context, scratch.key_rope_gradient, 1, context.model.mla().rope_dim(),
              scratch.rope_table, /*inverse=*/true);
}

// The part of dx that goes through the queries.
absl::StatusOr<void*> QueryBackwardInput(ModelContext& context, const MlaWeights& w,
                                         const MlaActivations& a, const MlaScratch& scratch) {
  const int64_t rank = context.model.mla().q_rank();
  void* const dx = scratch.part.norm_gradient;
  if (rank == 0) {
    MT_RETURN_IF_ERROR(LinearInputGradient(context, w.query, scratch.query_gradient, {}, dx));
    return context.SumToStream(dx);
  }
  MT_RETURN_IF_ERROR(LinearInputGradient(context, w.query, scratch.query_gradient, {},
                                         scratch.query_normed_gradient));
  MT_ASSIGN_OR_RETURN(const void* latent,
                      LatentBackward(context, w.query_norm, a.query_latent, a.query_norm,
                                     scratch.query_normed_gradient));
  MT_RETURN_IF_ERROR(RowsInputGradient(context, latent, w.query_down.weight, dx, w.query_down.in,
                                       rank, /*add=*/false));
  return dx;
}

}  // namespace

absl::StatusOr<void*> MlaForward(ModelContext& context, const MlaWeights& w, const void* x,
                                 const MlaActivations& a, const MlaScratch& scratch) {
  MT_RETURN_IF_ERROR(QueryForward(context, w, x, a, scratch));
  MT_RETURN_IF_ERROR(KeyValueForward(context, w, x, a, scratch));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_ATTENTION_FORWARD>(AttentionArguments(context, a)));
  MT_RETURN_IF_ERROR(LinearForward(context, w.output, a.output, {}, scratch.part.delta));
  return context.SumToStream(scratch.part.delta);
}

absl::StatusOr<void*> MlaBackwardInput(ModelContext& context, const MlaWeights& w, const void* dy,
                                       const MlaActivations& a, const MlaScratch& scratch) {
  const int64_t rank = context.model.mla().kv_rank(), rope_dim = context.model.mla().rope_dim();
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(dy, scratch.part.gathered_gradient));
  MT_RETURN_IF_ERROR(LinearInputGradient(context, w.output, rows, {}, scratch.output_gradient));
  MT_RETURN_IF_ERROR(HeadsBackward(context, a, scratch));
  MT_ASSIGN_OR_RETURN(void* dx, QueryBackwardInput(context, w, a, scratch));

  MT_RETURN_IF_ERROR(LinearInputGradient(context, w.key_value, scratch.key_value_gradient, {},
                                         scratch.key_normed_gradient));
  MT_ASSIGN_OR_RETURN(const void* latent, LatentBackward(context, w.key_norm, a.key_latent,
                                                         a.key_norm, scratch.key_normed_gradient));
  MT_RETURN_IF_ERROR(RowsInputGradient(context, latent, w.key_down.weight, dx, w.key_down.in, rank,
                                       /*add=*/true));
  MT_ASSIGN_OR_RETURN(const void* key_rope,
                      context.SumToStream(scratch.key_rope_gradient, rope_dim));
  MT_RETURN_IF_ERROR(RowsInputGradient(context, key_rope, RopeRows(context, w.key_down).weight, dx,
                                       w.key_down.in, rope_dim, /*add=*/true));
  return dx;
}

absl::Status MlaBackwardWeight(ModelContext& context, const MlaWeights& w, const void* x,
                               const void* dy, const MlaActivations& a, const MlaScratch& scratch) {
  const v1::MlaSpec& mla = context.model.mla();
  MT_RETURN_IF_ERROR(LinearWeightGradient(
      context, w.output, context.GatheredRows(dy, scratch.part.gathered_gradient), a.output, {}));
  // The forward pass gathered these for each block; they are gathered again.
  MT_ASSIGN_OR_RETURN(const void* key_normed,
                      context.GatherRows(a.key_norm.output, scratch.gathered_key, mla.kv_rank()));
  MT_RETURN_IF_ERROR(
      LinearWeightGradient(context, w.key_value, scratch.key_value_gradient, key_normed, {}));
  MT_RETURN_IF_ERROR(
      RowsWeightGradient(context, RowsWithin(context, scratch.key_normed_gradient, mla.kv_rank()),
                         x, w.key_down.weight_gradient, w.key_down.in, mla.kv_rank()));
  MT_RETURN_IF_ERROR(
      RowsWeightGradient(context, RowsWithin(context, scratch.key_rope_gradient, mla.rope_dim()), x,
                         RopeRows(context, w.key_down).gradient, w.key_down.in, mla.rope_dim()));

  if (mla.q_rank() == 0) {
    MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
    return LinearWeightGradient(context, w.query, scratch.query_gradient, rows, {});
  }
  MT_ASSIGN_OR_RETURN(
      const void* query_normed,
      context.GatherRows(a.query_norm.output, scratch.gathered_query, mla.q_rank()));
  MT_RETURN_IF_ERROR(
      LinearWeightGradient(context, w.query, scratch.query_gradient, query_normed, {}));
  return RowsWeightGradient(context,
                            RowsWithin(context, scratch.query_normed_gradient, mla.q_rank()), x,
                            w.query_down.weight_gradient, w.query_down.in, mla.q_rank());
}

}  // namespace mt
