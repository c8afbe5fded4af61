#include "common/spec/model_traits.h"
#include "common/spec/plan_builder.h"
#include "common/spec/round_up.h"

namespace mt {
namespace {

// Sequences whose choices are counted by themselves, and from one to the next (worker/model/moe_router.h).
int64_t CountNumbers(const v1::MoeSpec& moe, int64_t batch) {
  return (moe.balance() == v1::MoeSpec::BALANCE_SEQUENCE ? batch : 1) * RoundUp(moe.experts(), 16);
}

void PlanRouter(PlanBuilder& plan, const PlanBuilder::HasIt& moe) {
  const RankShape& s = plan.shape();
  const v1::MoeSpec& m = plan.model().moe();
  const int64_t N = s.rows, C = s.hidden, E = m.experts(), k = m.top_k();
  const int64_t statistic = s.statistic_bytes, counts = CountNumbers(m, s.batch);
  plan.KeepOfBlocks("moe.logits", {N, E}, statistic, moe);
  plan.KeepOfBlocks("moe.ids", {N, k}, 4, moe);
  plan.KeepOfBlocks("moe.weights", {N, k}, statistic, moe);
  if (m.balance() == v1::MoeSpec::BALANCE_BATCH || m.balance() == v1::MoeSpec::BALANCE_SEQUENCE)
    plan.KeepOfBlocks("moe.balance_gradient", {counts}, 8, moe);
  plan.Scratch("moe.counts64", {2, counts}, kGateUp, kGateUp, 8);
  plan.Scratch("moe.counts", {2, counts}, kGateUp, kGateUp, statistic);
  plan.Scratch("moe.weights_gradient", {N, k}, kDownBackward, kGateUpBackward, statistic);
  plan.Scratch("moe.logits_gradient", {N, E}, kGateUpBackward, kSecondNormBackward, statistic);
  if (s.element_bytes == statistic) return;
  plan.Scratch("moe.router_weight", {E, C + 1}, kGateUp, kSecondNormBackward, statistic);
  plan.Scratch("moe.router_input", {N, C}, kGateUp, kGateUp, statistic);
  plan.Scratch("moe.router_input_again", {N, C}, kGateUpBackward, kSecondNormBackward, statistic);
  plan.Scratch("moe.router_input_gradient", {N, C}, kGateUpBackward, kGateUpBackward);
}

void PlanShared(PlanBuilder& plan, const PlanBuilder::HasIt& moe) {
  const RankShape& s = plan.shape();
  const int64_t N = s.rows, D = s.shared_ffn;
  if (D == 0) return;
  plan.Block("moe.shared_gate_up", {N, 2 * D}, s.element_bytes, moe);
  plan.Scratch("moe.shared_activated", {N, D}, kGateUp, kDown);
  plan.Scratch("moe.shared_activated_gradient", {N, D}, kDownBackward, kActivationBackward);
  plan.Scratch("moe.shared_activated_again", {N, D}, kActivationBackward, kSecondNormBackward);
}

}  // namespace

// R sorted rows: without a capacity every choice has one; with one, as many may be used.
void PlanMoe(PlanBuilder& plan) {
  const auto moe = [&](int64_t layer) { return IsMoe(plan.model(), layer); };
  if (!plan.Any(moe)) return;
  const RankShape& s = plan.shape();
  const v1::MoeSpec& m = plan.model().moe();
  const int64_t N = s.rows, C = s.hidden, k = m.top_k(), R = N * k, D = s.expert_ffn;
  PlanRouter(plan, moe);
  plan.KeepOfBlocks("moe.position", {N, k}, 4, moe);
  plan.KeepOfBlocks("moe.source", {R}, 4, moe);
  plan.KeepOfBlocks("moe.offsets", {m.experts() + 1}, 4, moe);
  plan.Block("moe.gate_up", {R, 2 * D}, s.element_bytes, moe);
  plan.Block("moe.output", {R, C}, s.element_bytes, moe);
  // The recomputation makes the experts' part again while the gradient of the block's output waits.
  plan.Scratch("moe.sorted", {R, C}, kGateUp, plan.recompute() ? kDownBackward : kGateUp);
  plan.Scratch("moe.activated", {R, D}, kDown, plan.recompute() ? kDownBackward : kDown);
  plan.Scratch("moe.activated_gradient", {R, D}, kDownBackward, kActivationBackward);
  plan.Scratch("moe.activated_again", {R, D}, kActivationBackward, kSecondNormBackward);
  plan.Scratch("moe.sorted_again", {R, C}, kGateUpBackward, kSecondNormBackward);
  PlanShared(plan, moe);
}

}  // namespace mt
