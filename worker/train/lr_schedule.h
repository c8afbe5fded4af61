// The learning rate as a function of the step.
#pragma once

#include <cstdint>

#include "mt/v1/spec.pb.h"

namespace mt {

// For the step after `steps_done` steps; `training` is resolved. With W warm-up steps and D decay
// steps:
//   steps_done < W: lr (steps_done + 1) / W, so that no step is wasted at zero and step W runs at
//   the peak; linear, cosine: from lr at steps_done = W to min_lr at W + D (cosine: Loshchilov &
//   Hutter 2017), min_lr afterwards; wsd (Hu et al. 2024, MiniCPM): lr until D steps before the end
//   of the run, then linear to min_lr; constant: lr.
double LearningRateAt(const v1::TrainingSpec& training, int64_t steps_done);

}  // namespace mt
