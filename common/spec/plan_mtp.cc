#include "common/spec/plan_builder.h"

namespace mt {

// Its block is one more of the stage's blocks. Its forward and backward pass lie between the head's two, and use all scratch of a
// block's passes.
void PlanMtp(PlanBuilder& plan) {
  if (!plan.mtp()) return;
  const RankShape& s = plan.shape();
  const int64_t N = s.rows, S = s.stream_rows, C = s.hidden;
  const int64_t data = s.element_bytes, statistic = s.statistic_bytes;
  for (const char* rstd : {"mtp.embedding_rstd", "mtp.hidden_rstd", "mtp.head_rstd"})
    plan.Keep(rstd, {S}, 1, statistic);
  for (const char* stream :
       {"mtp.embedded", "mtp.embedding_norm", "mtp.hidden_norm", "mtp.head_sum", "mtp.head_norm",
        "mtp.embedded_gradient", "mtp.hidden_gradient"})
    plan.Keep(stream, {S, C}, 1, data);
  plan.Keep("mtp.head_norm_gradient", {N, C}, 1, data);
  plan.Keep("mtp.row_loss", {N}, 1, statistic);
}

}  // namespace mt
