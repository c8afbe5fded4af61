#include "common/spec/plan_builder.h"

namespace mt {

void PlanHead(PlanBuilder& plan) {
  if (!plan.last_stage()) return;
  const RankShape& s = plan.shape();
  const int64_t N = s.rows, S = s.stream_rows, C = s.hidden, chunk = s.loss_chunk;
  const int64_t statistic = s.statistic_bytes;
  plan.Scratch("head.sum", {S, C}, kHead, kStreamGradient);
  plan.Scratch("head.rstd", {S}, kHead, kStreamGradient, statistic);
  plan.Scratch("head.norm", {S, C}, kHead, kHead);
  plan.Scratch("head.norm_gradient", {N, C}, kHead, kStreamGradient);
  plan.Scratch("head.logits", {chunk, s.vocab_rows}, kHead, kHead);
  plan.Scratch("head.maximum", {plan.tensor(), chunk}, kHead, kHead, statistic);
  plan.Scratch("head.sum_exp", {plan.tensor(), chunk}, kHead, kHead, statistic);
  plan.Scratch("head.target_logit", {plan.tensor(), chunk}, kHead, kHead, statistic);
  plan.Scratch("head.lse", {chunk}, kHead, kHead, statistic);
  plan.Scratch("head.row_loss", {N}, kHead, kHead, statistic);
}

}  // namespace mt
