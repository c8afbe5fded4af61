#include "common/spec/model_traits.h"
#include "common/spec/plan_builder.h"

namespace mt {

void PlanAttention(PlanBuilder& plan) {
  if (IsMla(plan.model())) return;
  const RankShape& s = plan.shape();
  const int64_t N = s.rows;
  const int64_t data = s.element_bytes, statistic = s.statistic_bytes;
  plan.Cached("block.qkv", {N, s.qkv}, data);
  plan.Block("block.attention", {N, s.query}, data);
  plan.Block("block.attention_lse", {s.heads, N}, statistic);
  if (plan.model().qk_norm()) {
    const int64_t rotated = s.query + s.kv_heads * s.head_dim;
    plan.Cached("block.rotated", {N, rotated}, data);
    plan.Block("block.query_rstd", {N, s.heads}, statistic);
    plan.Block("block.key_rstd", {N, s.kv_heads}, statistic);
    plan.Scratch("block.rotated_gradient", {N, rotated}, kAttentionBackward, kAttentionBackward);
  }
  plan.Scratch("block.attention_gradient", {N, s.query}, kOutputBackward, kAttentionBackward);
  plan.Scratch("block.qkv_gradient", {N, s.qkv}, kAttentionBackward, kInputBackward);
}

}  // namespace mt
