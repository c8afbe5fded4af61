#include "worker/train/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mt {

double LearningRateAt(const v1::TrainingSpec& training, int64_t steps_done) {
  const v1::ScheduleSpec& schedule = training.schedule();
  const double peak = training.optimizer().lr(), floor = schedule.min_lr();
  const int64_t warmup = schedule.warmup_steps();
  if (steps_done < warmup) {
    return peak * static_cast<double>(steps_done + 1) / static_cast<double>(warmup);
  }
  if (schedule.kind() == v1::ScheduleSpec::KIND_CONSTANT) return peak;
  const int64_t decay = std::max<int64_t>(1, schedule.decay_steps());
  const int64_t decay_start = schedule.kind() == v1::ScheduleSpec::KIND_WSD
                                  ? std::max(warmup, training.steps() - decay)
                                  : warmup;
  const double progress = std::clamp(
      static_cast<double>(steps_done - decay_start) / static_cast<double>(decay), 0.0, 1.0);
  if (schedule.kind() == v1::ScheduleSpec::KIND_COSINE) {
    return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  }
  return peak + (floor - peak) * progress;
}

}  // namespace mt
