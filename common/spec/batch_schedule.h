// How many samples a step takes, as a function of the samples consumed before it: training.global_batch, or less while
// training.batch_rampup lasts.
//
// With start b, increment d, final batch B and S samples there are n = (B - b) / d increments, each after S / n samples: a step
// that begins with c samples consumed takes b + d floor(c / (S / n)) of them, and B once c > S. Megatron-LM's
// num_microbatches_calculator.py (RampupBatchsizeNumMicroBatchesCalculator) for the same flags; tests/golden/batch_rampup compares.
// The learning rate goes by steps, ramp-up or not, as Megatron's --train-iters with --lr-warmup-iters.
#pragma once

#include <cstdint>

#include "mt/v1/spec.pb.h"

namespace mt {

inline bool HasBatchRampup(const v1::TrainingSpec& spec) { return spec.batch_rampup().start() > 0; }

// Samples of the step that begins with `consumed_samples` consumed. `spec` is resolved and valid.
int64_t GlobalBatchAt(const v1::TrainingSpec& spec, int64_t consumed_samples);

// Samples of the step that ended with `consumed_samples` consumed, more than none.
int64_t GlobalBatchBefore(const v1::TrainingSpec& spec, int64_t consumed_samples);

// consumed_samples after `steps` steps more. The largest int64 if they are more.
int64_t SamplesAfter(const v1::TrainingSpec& spec, int64_t consumed_samples, int64_t steps);

// Samples of `steps` steps from the beginning of the run.
inline int64_t SamplesOfSteps(const v1::TrainingSpec& spec, int64_t steps) {
  return SamplesAfter(spec, 0, steps);
}

}  // namespace mt
