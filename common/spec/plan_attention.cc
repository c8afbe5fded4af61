#include "common/spec/model_traits.h"
#include "common/spec/plan_builder.h"

namespace mt {

void PlanAttention(PlanBuilder& plan) {
  if (IsMla(plan.model())) return;
  const RankShape& s = plan.shape();
  const int64_t N = s.rows;
  const int64_t data = s.element_bytes, statistic = s.statistic_bytes;
  plan.Keep("rope.table", {s.sequence, s.head_dim}, 1, statistic);
  plan.Block("block.qkv", {N, s.qkv}, data);
  plan.Block("block.attention", {N, s.query}, data);
  plan.Block("block.attention_lse", {s.heads, N}, statistic);
  plan.Scratch("block.attention_gradient", {N, s.query}, kOutputBackward, kAttentionBackward);
  plan.Scratch("block.qkv_gradient", {N, s.qkv}, kAttentionBackward, kInputBackward);
}

}  // namespace mt
