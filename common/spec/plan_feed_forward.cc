#include "common/spec/model_traits.h"
#include "common/spec/plan_builder.h"

namespace mt {

void PlanFeedForward(PlanBuilder& plan) {
  const RankShape& s = plan.shape();
  const int64_t N = s.rows;
  const auto dense = [&](int64_t layer) { return !IsMoe(plan.model(), layer); };
  if (!plan.Any(dense)) return;
  plan.Block("block.gate_up", {N, s.gate_up}, s.element_bytes, dense);
  plan.Scratch("block.activated", {N, s.ffn}, kGateUp, kDown);
  plan.Scratch("block.activated_gradient", {N, s.ffn}, kDownBackward, kActivationBackward);
  plan.Scratch("block.activated_again", {N, s.ffn}, kActivationBackward, kSecondNormBackward);
}

}  // namespace mt
