#include "common/spec/model_traits.h"
#include "common/spec/plan_builder.h"

namespace mt {

void PlanMla(PlanBuilder& plan) {
  if (!IsMla(plan.model())) return;
  const RankShape& s = plan.shape();
  const v1::MlaSpec& mla = plan.model().mla();
  const int64_t N = s.rows, S = s.stream_rows, Q = mla.q_rank(), R = mla.kv_rank();
  const int64_t keys = s.heads * KeyHeadDim(plan.model()), values = s.heads * mla.v_dim(),
                keys_and_values = s.heads * (mla.nope_dim() + mla.v_dim());
  const int64_t data = s.element_bytes, statistic = s.statistic_bytes;
  if (Q > 0) {
    plan.Block("mla.query_latent", {S, Q}, data);
    plan.Block("mla.query_rstd", {S}, statistic);
    plan.Block("mla.query_normed", {S, Q}, data);
  }
  plan.Block("mla.key_latent", {S, R}, data);
  plan.Block("mla.key_rstd", {S}, statistic);
  plan.Block("mla.key_normed", {S, R}, data);
  plan.Block("mla.query", {N, keys}, data);
  plan.Cached("mla.key", {N, keys}, data);
  plan.Cached("mla.value", {N, values}, data);
  plan.Block("mla.output", {N, values}, data);
  plan.Block("mla.lse", {s.heads, N}, statistic);

  // What is made again in the backward pass is made while the stream's gradient waits.
  const Moment made = plan.recompute() ? kStreamGradient : kAttention;
  plan.Scratch("mla.key_value", {N, keys_and_values}, kQkv, made);
  plan.Scratch("mla.key_rope", {N, mla.rope_dim()}, kQkv, made);
  if (S != N) {
    plan.Scratch("mla.key_rope_rows", {S, mla.rope_dim()}, kQkv, made);
    if (Q > 0) plan.Scratch("mla.gathered_query", {N, Q}, kQkv, kInputBackward);
    plan.Scratch("mla.gathered_key", {N, R}, kQkv, kInputBackward);
  }
  plan.Scratch("mla.output_gradient", {N, values}, kOutputBackward, kAttentionBackward);
  plan.Scratch("mla.query_gradient", {N, keys}, kAttentionBackward, kInputBackward);
  plan.Scratch("mla.key_gradient", {N, keys}, kAttentionBackward, kAttentionBackward);
  plan.Scratch("mla.value_gradient", {N, values}, kAttentionBackward, kAttentionBackward);
  plan.Scratch("mla.key_value_gradient", {N, keys_and_values}, kAttentionBackward, kInputBackward);
  plan.Scratch("mla.key_rope_gradient", {N, mla.rope_dim()}, kAttentionBackward, kInputBackward);
  if (Q > 0) plan.Scratch("mla.query_normed_gradient", {N, Q}, kQkvBackward, kInputBackward);
  plan.Scratch("mla.key_normed_gradient", {N, R}, kQkvBackward, kInputBackward);
}

}  // namespace mt
