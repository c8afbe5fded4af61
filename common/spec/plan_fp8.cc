#include <algorithm>

#include "common/spec/plan_builder.h"

namespace mt {

// Quantised operands of the blocks' products. An output gradient's transposed copy waits from its
// input gradient to its weight gradient, which is after the half block's norm.
void PlanFp8(PlanBuilder& plan) {
  if (!plan.fp8()) return;
  const RankShape& s = plan.shape();
  const int64_t N = s.rows, C = s.hidden;
  const int64_t widest_in = std::max({C, s.query, s.ffn}), widest = std::max({C, s.qkv, s.gate_up});
  plan.Keep("fp8.amax", {s.blocks, kFp8ScalesPerBlock}, s.in_flight, 4);
  plan.Keep("fp8.scale", {s.blocks, kFp8ScalesPerBlock}, s.in_flight, 4);
  plan.Scratch("fp8.rows", {N, std::max(widest, widest_in)}, kInput, kInputBackward, 1);
  plan.Scratch("fp8.columns", {widest_in, N}, kDownBackward, kInputBackward, 1);
  plan.Scratch("fp8.down_gradient", {C, N}, kDownBackward, kSecondNormBackward, 1);
  plan.Scratch("fp8.gate_up_gradient", {s.gate_up, N}, kGateUpBackward, kSecondNormBackward, 1);
  plan.Scratch("fp8.output_gradient", {C, N}, kOutputBackward, kInputBackward, 1);
  plan.Scratch("fp8.qkv_gradient", {s.qkv, N}, kQkvBackward, kInputBackward, 1);
}

}  // namespace mt
