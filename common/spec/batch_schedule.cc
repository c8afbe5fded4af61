#include "common/spec/batch_schedule.h"

#include <algorithm>
#include <limits>

namespace mt {
namespace {

// A quotient of doubles, as Megatron's: S / n need not be whole.
double SamplesPerIncrement(const v1::TrainingSpec& spec) {
  const v1::BatchRampup& rampup = spec.batch_rampup();
  const int64_t increments = (spec.global_batch() - rampup.start()) / rampup.increment();
  return static_cast<double>(rampup.samples()) / static_cast<double>(increments);
}

bool Ramps(const v1::TrainingSpec& spec, int64_t consumed_samples) {
  return HasBatchRampup(spec) && consumed_samples <= spec.batch_rampup().samples();
}

// At least one: so many steps from `consumed_samples` on are of one size, or more. Within a ramp-up.
int64_t StepsOfOneSize(const v1::TrainingSpec& spec, int64_t consumed_samples, int64_t size) {
  const double each = SamplesPerIncrement(spec);
  const double done =
      static_cast<double>((size - spec.batch_rampup().start()) / spec.batch_rampup().increment());
  const double left = (done + 1) * each - static_cast<double>(consumed_samples);
  // One less than there seem to be: rounding is far below a step.
  return std::max<int64_t>(1, static_cast<int64_t>(left / static_cast<double>(size)) - 1);
}

}  // namespace

int64_t GlobalBatchAt(const v1::TrainingSpec& spec, int64_t consumed_samples) {
  if (!Ramps(spec, consumed_samples)) return spec.global_batch();
  const auto done =
      static_cast<int64_t>(static_cast<double>(consumed_samples) / SamplesPerIncrement(spec));
  return spec.batch_rampup().start() + done * spec.batch_rampup().increment();
}

int64_t GlobalBatchBefore(const v1::TrainingSpec& spec, int64_t consumed_samples) {
  int64_t consumed = 0, size = 0;
  while (consumed < consumed_samples && Ramps(spec, consumed)) {
    size = GlobalBatchAt(spec, consumed);
    const int64_t rest = (consumed_samples - consumed + size - 1) / size;
    consumed += std::min(rest, StepsOfOneSize(spec, consumed, size)) * size;
  }
  return consumed < consumed_samples ? spec.global_batch() : size;
}

int64_t SamplesAfter(const v1::TrainingSpec& spec, int64_t consumed_samples, int64_t steps) {
  int64_t consumed = consumed_samples;
  int64_t step = 0;
  while (step < steps && Ramps(spec, consumed)) {
    const int64_t size = GlobalBatchAt(spec, consumed);
    const int64_t count = std::min(steps - step, StepsOfOneSize(spec, consumed, size));
    consumed += count * size;
    step += count;
  }
  int64_t rest = 0;
  if (__builtin_mul_overflow(steps - step, spec.global_batch(), &rest) ||
      __builtin_add_overflow(consumed, rest, &consumed)) {
    return std::numeric_limits<int64_t>::max();
  }
  return consumed;
}

}  // namespace mt
