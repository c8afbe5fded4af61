#include "worker/train/step_line.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "absl/strings/str_format.h"
#include "common/spec/batch_schedule.h"
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

// " | balance 0.010123 | expert load 1.25 at most 1.80 | dropped 12": of what the model has.
std::string AuxiliaryText(const v1::TrainingProgress& progress) {
  // The map has no order of its own.
  const std::map<std::string, double> losses(progress.auxiliary_losses().begin(),
                                             progress.auxiliary_losses().end());
  std::string text;
  for (const auto& [name, loss] : losses) absl::StrAppendFormat(&text, " | %s %.6f", name, loss);
  const auto& ratio = progress.moe().load_ratio();
  if (ratio.empty()) return text;
  absl::StrAppendFormat(&text, " | expert load %.2f at most %.2f",
                        std::accumulate(ratio.begin(), ratio.end(), 0.0) / ratio.size(),
                        *std::max_element(ratio.begin(), ratio.end()));
  if (progress.moe().dropped_tokens() > 0)
    absl::StrAppendFormat(&text, " | dropped %.0f", progress.moe().dropped_tokens());
  return text;
}

}  // namespace

StepReporter::StepReporter(const v1::JobSpec& spec, double peak_flops, int64_t start_step,
                           absl::Duration started)
    : spec_(spec),
      peak_flops_(peak_flops),
      started_(started),
      flops_per_token_(ModelFlops(spec.model(), spec.data().sequence_length(), 1)),
      samples_of_run_(SamplesOfSteps(spec.training(), spec.training().steps())) {}

v1::StepReport StepReporter::Report(const StepResult& result, int64_t consumed_samples,
                                    absl::Duration step_time, absl::Duration stall,
                                    absl::Duration now) {
  const double seconds = std::max(1e-9, absl::ToDoubleSeconds(step_time));
  productive_seconds_ += seconds;
  recent_.push_back({.seconds = seconds + absl::ToDoubleSeconds(stall),
                     .samples = result.tokens / spec_.data().sequence_length()});
  if (recent_.size() > kRecentSteps) recent_.pop_front();
  // By samples: steps to come may be larger.
  Recent all;
  for (const Recent& step : recent_) {
    all.seconds += step.seconds;
    all.samples += step.samples;
  }
  const double seconds_to_come = all.seconds *
                                 static_cast<double>(samples_of_run_ - consumed_samples) /
                                 static_cast<double>(std::max<int64_t>(1, all.samples));
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
  progress->mutable_auxiliary_losses()->insert(result.auxiliary_losses.begin(),
                                               result.auxiliary_losses.end());
  if (result.expert_load.has_value()) {
    v1::MoeProgress& moe = *progress->mutable_moe();
    moe.set_first_layer(result.expert_load->first_layer);
    moe.mutable_load_ratio()->Add(result.expert_load->load_ratio.begin(),
                                  result.expert_load->load_ratio.end());
    moe.set_dropped_tokens(result.expert_load->dropped);
  }
  const double flops_per_second = flops_per_token_ * static_cast<double>(result.tokens) / seconds;
  progress->set_model_flops_per_second(flops_per_second);
  progress->set_mfu(peak_flops_ > 0 ? flops_per_second / peak_flops_ : 0);
  progress->mutable_eta()->set_seconds(static_cast<int64_t>(std::max(0.0, seconds_to_come) + 0.5));
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
  const bool evaluated = progress.validation_step() > 0;
  const std::string held_out =
      evaluated ? absl::StrFormat(" | held-out loss %.6f, perplexity %.3f",
                                  progress.validation_loss(), std::exp(progress.validation_loss()))
                : "";
  return absl::StrFormat(
      "step %*d/%s | loss %.6f%s | grad norm %.4f | lr %.3e | %.1f ms | %s tok/s | MFU %.1f%% | "
      "ETA "
      "%s | goodput %.1f%%%s",
      static_cast<int>(total.size()), progress.step(), total, progress.loss(),
      AuxiliaryText(progress), progress.grad_norm(), progress.learning_rate(),
      progress.step_seconds() * 1e3,
      WithThousands(static_cast<int64_t>(progress.tokens_per_second() + 0.5)), progress.mfu() * 100,
      HoursMinutesSeconds(progress.eta().seconds()), goodput * 100, held_out);
}

}  // namespace mt
