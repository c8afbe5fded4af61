#include "common/spec/model_traits.h"
#include "common/spec/plan_builder.h"

namespace mt {

void PlanHead(PlanBuilder& plan) {
  if (!plan.last_stage()) return;
  const RankShape& s = plan.shape();
  const int64_t N = s.rows, S = s.stream_rows, C = s.hidden, chunk = s.loss_chunk;
  const int64_t statistic = s.statistic_bytes;
  // Multi-token prediction runs whole passes of a block in the middle of the head's, which then must share memory with nothing.
  const Moment made = plan.mtp() ? kInput : kHead, done = plan.mtp() ? kInputBackward : kHead,
               read = plan.mtp() ? kInputBackward : kStreamGradient;
  plan.Scratch("head.sum", {S, C}, made, read);
  plan.Scratch("head.rstd", {S}, made, read, statistic);
  if (HasLayerNorm(plan.model())) plan.Scratch("head.mean", {S}, made, read, statistic);
  plan.Scratch("head.norm", {S, C}, made, done);
  plan.Scratch("head.norm_gradient", {N, C}, made, read);
  plan.Scratch("head.logits", {chunk, s.vocab_rows}, kHead, kHead);
  plan.Scratch("head.maximum", {plan.tensor(), chunk}, kHead, kHead, statistic);
  plan.Scratch("head.sum_exp", {plan.tensor(), chunk}, kHead, kHead, statistic);
  plan.Scratch("head.target_logit", {plan.tensor(), chunk}, kHead, kHead, statistic);
  plan.Scratch("head.lse", {chunk}, kHead, kHead, statistic);
  plan.Scratch("head.row_loss", {N}, made, done, statistic);
}

}  // namespace mt
