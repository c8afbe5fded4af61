#include "worker/agent/hang_detector.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"

namespace mt {
namespace {

constexpr int kExcludedSteps = 5;
constexpr size_t kRecentSteps = 100;
constexpr double kSafety = 5.0;
constexpr double kWaitingAllowance = 1.5;
constexpr absl::Duration kHeardWithin = absl::Seconds(3);  // ranks give a sign of life every second

}  // namespace

void HangDetector::OnProgress(const v1::Progress& progress, absl::Duration now) {
  heard_ = now;
  where_ = progress.where();
  if (progress.phase() == phase_ && progress.step() == step_) return;
  if (in_step_ && progress.step() > step_) {
    if (++steps_seen_ > kExcludedSteps) {
      recent_.push_back((now - step_began_) / std::max<int64_t>(1, progress.step() - step_));
      if (recent_.size() > kRecentSteps) recent_.pop_front();
    }
  }
  if (progress.phase() == "step" && (!in_step_ || progress.step() != step_)) step_began_ = now;
  in_step_ = progress.phase() == "step";
  phase_ = progress.phase();
  step_ = progress.step();
  progressed_ = now;
}

absl::Duration HangDetector::Percentile99() const {
  if (recent_.empty()) return absl::ZeroDuration();
  std::vector<absl::Duration> sorted(recent_.begin(), recent_.end());
  const size_t index = (sorted.size() * 99 + 99) / 100 - 1;
  std::nth_element(sorted.begin(), sorted.begin() + index, sorted.end());
  return sorted[index];
}

absl::Duration HangDetector::Deadline(absl::Duration now) const {
  absl::Duration deadline = start_deadline_;
  if (phase_ == "step" && steps_seen_ > kExcludedSteps) {
    deadline = std::max(min_step_deadline_, kSafety * Percentile99());
  } else if (phase_ == "step" && steps_seen_ > 0) {
    deadline = std::max(min_step_deadline_, start_deadline_);  // warming up: nothing is known yet
  }
  const bool is_heard = heard_ > progressed_ && now - heard_ < kHeardWithin;
  return is_heard && absl::StartsWith(where_, kWaitingPrefix) ? deadline * kWaitingAllowance
                                                              : deadline;
}

}  // namespace mt
