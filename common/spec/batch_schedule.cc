#include "common/spec/batch_schedule.h"

#include <limits>

namespace mt {

int64_t GlobalBatchAt(const v1::TrainingSpec& spec, int64_t consumed_samples) {
  const v1::BatchRampup& rampup = spec.batch_rampup();
  if (rampup.start() == 0 || consumed_samples > rampup.samples()) return spec.global_batch();
  const int64_t increments = (spec.global_batch() - rampup.start()) / rampup.increment();
  if (increments == 0) return spec.global_batch();
  // A quotient of doubles, as Megatron's: S / n need not be whole.
  const double samples_per_increment =
      static_cast<double>(rampup.samples()) / static_cast<double>(increments);
  if (samples_per_increment == 0) return spec.global_batch();
  const auto done =
      static_cast<int64_t>(static_cast<double>(consumed_samples) / samples_per_increment);
  return rampup.start() + done * rampup.increment();
}

int64_t SamplesOfSteps(const v1::TrainingSpec& spec, int64_t steps) {
  int64_t consumed = 0;
  int64_t step = 0;
  for (; step < steps && consumed <= spec.batch_rampup().samples(); ++step)
    consumed += GlobalBatchAt(spec, consumed);
  int64_t rest = 0;
  if (__builtin_mul_overflow(steps - step, spec.global_batch(), &rest) ||
      __builtin_add_overflow(consumed, rest, &consumed)) {
    return std::numeric_limits<int64_t>::max();
  }
  return consumed;
}

}  // namespace mt
