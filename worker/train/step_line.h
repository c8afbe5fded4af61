// What is said about a step: the line in the log and the report to the coordinator.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "absl/time/time.h"
#include "mt/v1/worker.pb.h"
#include "worker/train/trainer.h"

namespace mt {

class StepReporter {
 public:
  // `peak_flops`: of all ranks together, measured; 0 = unknown (MFU is then 0). `start_step`: steps
  // done before this run of the process; `started`: when the process began, on the monotonic clock.
  StepReporter(const v1::JobSpec& spec, double peak_flops, int64_t start_step,
               absl::Duration started);

  // Call after every step. `step_time` is the whole step, `stall` what a checkpoint took since the
  // last one.
  v1::StepReport Report(const StepResult& result, int64_t consumed_samples,
                        absl::Duration step_time, absl::Duration stall, absl::Duration now);
  // "step 12/200 | loss 3.456789 | grad norm 1.23 | lr 3.00e-04 | 123.4 ms | 12,345 tok/s |
  // MFU 34.1% | ETA 0:12:34 | goodput 97.2%"; after the loss the auxiliary ones, and with experts the load of the busiest over the
  // mean (the mean of all blocks, and the largest) and what was dropped: " | balance 0.010123 | expert load 1.25 at most 1.80". After an evaluation:
  // " | held-out loss 3.210000, perplexity 24.779" at the end.
  static std::string Line(const v1::TrainingProgress& progress, double goodput);
  double goodput() const { return goodput_; }

 private:
  const v1::JobSpec spec_;
  const double peak_flops_;
  const absl::Duration started_;
  const double flops_per_token_;
  struct Recent {
    double seconds = 0;
    int64_t samples = 0;
  };
  std::deque<Recent> recent_;
  const int64_t samples_of_run_;
  double productive_seconds_ = 0;
  double goodput_ = 0;
};

}  // namespace mt
