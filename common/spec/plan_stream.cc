#include "common/spec/model_traits.h"
#include "common/spec/plan_builder.h"

namespace mt {

void PlanStream(PlanBuilder& plan) {
  const RankShape& s = plan.shape();
  const int64_t N = s.rows, S = s.stream_rows, C = s.hidden;
  if (plan.first_stage()) plan.Keep("tokens.input", {N}, s.in_flight, 4);
  // Multi-token prediction reads them from the second row of sequences on: one more row, without targets. Where labels are masked
  // it has rows of its own.
  if (plan.last_stage())
    plan.Keep("tokens.target", {N + (plan.mtp() ? s.batch : 0)}, s.in_flight, 4);
  if (plan.mtp()) {
    for (const char* rows : {"tokens.next", "tokens.mtp_target"})
      plan.Keep(rows, {N}, s.in_flight, 4);
  }
  if (plan.document_mask()) plan.Keep("documents.start", {N}, s.in_flight, 4);
  if (s.rotary_dim > 0) plan.Keep("rope.table", {s.sequence, s.rotary_dim}, 1, s.statistic_bytes);
  // Every block rotates; learned positions are added once.
  if (plan.reset_positions() ? s.rotary_dim > 0 || plan.first_stage()
                             : HasLearnedPositions(plan.model()) && plan.first_stage()) {
    plan.Keep("positions.ids", {N}, plan.reset_positions() ? s.in_flight : 1, 4);
  }
  plan.KeepOfBlocks("block.input", {S, C}, s.element_bytes);
  plan.Block("block.middle", {S, C}, s.element_bytes);
  for (const char* rstd : {"block.first_norm_rstd", "block.second_norm_rstd"})
    plan.Block(rstd, {S}, s.statistic_bytes);
  if (HasLayerNorm(plan.model())) {
    for (const char* mean : {"block.first_norm_mean", "block.second_norm_mean"})
      plan.Block(mean, {S}, s.statistic_bytes);
  }
  for (const char* norm : {"block.first_norm", "block.second_norm"})
    plan.Block(norm, {S, C}, s.element_bytes);
  // A projection's output before and after the sum over the tensor group; carried into the next
  // block.
  plan.Scratch("stream.delta", {N, C}, kInput, plan.recompute() ? kInputBackward : kHead);
  plan.Scratch("stream.gradient", {S, C}, kHead, kInputBackward);
  // Two buffers take turns, so that a weight gradient can still read what came in when its
  // block's input gradient is made.
  plan.Scratch("stream.middle_gradient", {S, C}, kSecondNormBackward, kInputBackward);
  plan.Scratch("block.norm_gradient", {N, C}, kGateUpBackward, kFirstNormBackward);
  if (S != N) {
    plan.Scratch("gathered.input", {N, C}, kFirstNorm, kInputBackward);
    plan.Scratch("gathered.gradient", {N, C}, kDownBackward, kInputBackward);
  }
}

}  // namespace mt
