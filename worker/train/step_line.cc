#include "worker/train/step_line.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_format.h"
#include "common/spec/model_flops.h"

namespace mt {
namespace {

constexpr size_t kRecentSteps = 20;

std::string WithThousands(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(at, 1, ',');
  return digits;
}

std::string HoursMinutesSeconds(int64_t seconds) {
  return absl::StrFormat("%d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

}  // namespace

StepReporter::StepReporter(const v1::JobSpec& spec, double peak_flops, int64_t start_step,
                           absl::Duration started)
    : spec_(spec),
      peak_flops_(peak_flops),
      started_(started),
      flops_per_token_(ModelFlops(spec.model(), spec.data().sequence_length(), 1)) {}

v1::StepReport StepReporter::Report(const StepResult& result, int64_t consumed_samples,
                                    absl::Duration step_time, absl::Duration stall,
                                    absl::Duration now) {
  const double seconds = std::max(1e-9, absl::ToDoubleSeconds(step_time));
  productive_seconds_ += seconds;
  recent_seconds_.push_back(seconds + absl::ToDoubleSeconds(stall));
  if (recent_seconds_.size() > kRecentSteps) recent_seconds_.pop_front();
  const double mean = std::accumulate(recent_seconds_.begin(), recent_seconds_.end(), 0.0) /
                      static_cast<double>(recent_seconds_.size());
  goodput_ = std::clamp(productive_seconds_ / std::max(1e-9, absl::ToDoubleSeconds(now - started_)),
                        0.0, 1.0);

  v1::StepReport report;
  report.set_checkpoint_stall_microseconds(absl::ToInt64Microseconds(stall));
  auto* progress = report.mutable_progress();
  progress->set_step(result.step);
  progress->set_total_steps(spec_.training().steps());
  progress->set_loss(result.loss);
  progress->set_grad_norm(result.grad_norm);
  progress->set_learning_rate(result.lr);
  progress->set_tokens_per_second(static_cast<double>(result.tokens) / seconds);
  progress->set_step_seconds(seconds);
  progress->set_consumed_samples(consumed_samples);
  progress->set_consumed_tokens(consumed_samples * spec_.data().sequence_length());
  const double flops_per_second = flops_per_token_ * static_cast<double>(result.tokens) / seconds;
  progress->set_model_flops_per_second(flops_per_second);
  progress->set_mfu(peak_flops_ > 0 ? flops_per_second / peak_flops_ : 0);
  progress->mutable_eta()->set_seconds(static_cast<int64_t>(
      mean * static_cast<double>(spec_.training().steps() - result.step) + 0.5));
  auto& phases = *progress->mutable_phase_seconds();
  phases["data"] = result.seconds.data;
  phases["forward"] = result.seconds.forward;
  phases["backward"] = result.seconds.backward;
  phases["grad_sync"] = result.seconds.grad_sync;
  phases["optimizer"] = result.seconds.optimizer;
  phases["checkpoint"] = absl::ToDoubleSeconds(stall);
  phases["other"] = std::max(0.0, seconds - result.seconds.data - result.seconds.forward -
                                      result.seconds.backward - result.seconds.grad_sync -
                                      result.seconds.optimizer);
  return report;
}

std::string StepReporter::Line(const v1::TrainingProgress& progress, double goodput) {
  const std::string total = absl::StrCat(progress.total_steps());
  return absl::StrFormat(
      "step %*d/%s | loss %.6f | grad norm %.4f | lr %.3e | %.1f ms | %s tok/s | MFU %.1f%% | ETA "
      "%s | goodput %.1f%%",
      static_cast<int>(total.size()), progress.step(), total, progress.loss(), progress.grad_norm(),
      progress.learning_rate(), progress.step_seconds() * 1e3,
      WithThousands(static_cast<int64_t>(progress.tokens_per_second() + 0.5)), progress.mfu() * 100,
      HoursMinutesSeconds(progress.eta().seconds()), goodput * 100);
}

}  // namespace mt
