#include "common/spec/check_moe.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "common/spec/model_traits.h"

namespace mt {
namespace {

// Choices of a micro-batch and rows of experts have 32-bit numbers.
constexpr int64_t kMostChoices = INT32_MAX;

template <typename... Parts>
absl::Status Refused(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// The largest divisor of `value` that is at most `limit`.
int64_t DivisorAtMost(int64_t value, int64_t limit) {
  while (value % limit != 0) --limit;
  return limit;
}

absl::Status CheckChoosing(const v1::MoeSpec& moe) {
  const int64_t experts = moe.experts(), top_k = moe.top_k();
  if (top_k < 1 || top_k > experts) {
    return Refused("model.moe.top_k = ", top_k, " of model.moe.experts = ", experts,
                   "; set model.moe.top_k to 1 to ", experts);
  }
  const int64_t groups = moe.groups();
  if (groups < 1 || groups > experts || experts % groups != 0) {
    return Refused("model.moe.groups = ", groups, " does not divide model.moe.experts = ", experts,
                   "; set model.moe.groups to ",
                   groups < 1 ? 1 : DivisorAtMost(experts, std::min(groups, experts)));
  }
  const int64_t size = experts / groups;
  if (moe.top_groups() < 1 || moe.top_groups() > groups) {
    return Refused("model.moe.top_groups = ", moe.top_groups(), " of model.moe.groups = ", groups,
                   "; set model.moe.top_groups to 1 to ", groups);
  }
  if (top_k > moe.top_groups() * size) {
    return Refused("model.moe.top_k = ", top_k, " is more than the ", moe.top_groups() * size,
                   " experts of model.moe.top_groups = ", moe.top_groups(), " groups of ", size,
                   "; set model.moe.top_k to at most ", moe.top_groups() * size,
                   " or model.moe.top_groups to ", (top_k + size - 1) / size);
  }
  if (groups > 1 && moe.group_score() == v1::MoeSpec::GROUP_SCORE_TOP_2 && size < 2) {
    return Refused(
        "model.moe.group_score = top_2 needs groups of two experts, but model.moe.groups = ",
        groups, " of model.moe.experts = ", experts, "; set model.moe.group_score to max");
  }
  return absl::OkStatus();
}

absl::Status CheckNumbers(const v1::MoeSpec& moe) {
  const std::pair<const char*, double> not_negative[] = {
      {"model.moe.balance_coefficient", moe.balance_coefficient()},
      {"model.moe.z_loss", moe.z_loss()},
      {"model.moe.capacity_factor", moe.capacity_factor()},
      {"model.moe.selection_bias_rate", moe.selection_bias_rate()}};
  for (const auto& [field, value] : not_negative) {
    if (!(value >= 0) || !std::isfinite(value))
      return Refused(field, " = ", value, "; set it to 0 (off) or more");
  }
  if (!(moe.scale() > 0) || !std::isfinite(moe.scale()))
    return Refused("model.moe.scale = ", moe.scale(),
                   "; set it to more than 0 (1 changes nothing)");
  if (moe.balance_coefficient() > 0 && moe.balance() == v1::MoeSpec::BALANCE_NONE) {
    return Refused("model.moe.balance_coefficient = ", moe.balance_coefficient(),
                   " with model.moe.balance = none; set model.moe.balance to batch, sequence or "
                   "global, or the coefficient to 0");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckMoe(const v1::JobSpec& spec) {
  const v1::ModelSpec& m = spec.model();
  const v1::MoeSpec& moe = m.moe();
  if (moe.experts() < 0)
    return Refused("model.moe.experts = ", moe.experts(), "; set it to 0 (dense) or more");
  if (!HasExperts(m)) return absl::OkStatus();
  MT_RETURN_IF_ERROR(CheckChoosing(moe));
  MT_RETURN_IF_ERROR(CheckNumbers(moe));
  if (moe.ffn() < 1) return Refused("model.moe.ffn = ", moe.ffn(), "; it must be at least 1");
  if (moe.shared_ffn() < 0)
    return Refused("model.moe.shared_ffn = ", moe.shared_ffn(), "; set it to 0 (none) or more");
  if (moe.first_dense() < 0 || moe.first_dense() >= m.layers()) {
    return Refused("model.moe.first_dense = ", moe.first_dense(), " of model.layers = ", m.layers(),
                   " blocks leaves none with experts; set it to 0 to ", m.layers() - 1);
  }
  if (!IsGated(m)) {
    return Refused("model.activation = gelu with model.moe.experts = ", moe.experts(),
                   ": experts are gated; set model.activation to swiglu");
  }
  const int64_t rows = spec.data().sequence_length() * spec.training().micro_batch();
  if (rows > kMostChoices / moe.top_k()) {
    return Refused("data.sequence_length × training.micro_batch × model.moe.top_k = ", rows, " × ",
                   moe.top_k(), " does not fit into 32 bits; lower training.micro_batch");
  }
  return absl::OkStatus();
}

}  // namespace mt
