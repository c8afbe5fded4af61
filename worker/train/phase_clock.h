// Where a step's time goes. On a backend in host memory a phase lasts from its Enter to the next
// one's, by the host's clock. A device is somewhere else in the step than the host: there events on
// its stream mark the phases and are read after the step's wait; only fetching samples, which is the
// host's, is measured by the host's clock.
#pragma once

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "worker/train/device_objects.h"

namespace mt {

// The phases of the device do not overlap and add up to nearly the whole step; `data` may overlap
// the others on a device.
struct PhaseSeconds {
  double data = 0;       // fetching samples
  double forward = 0;    // with the loss, and waiting for the previous stage
  double backward = 0;   // and waiting for the next stage
  double grad_sync = 0;  // sums of gradients, the norm, gathering updated weights
  double optimizer = 0;
};

class PhaseClock {
 public:
  using Phase = double PhaseSeconds::*;

  // At most `marks` changes of phase per step.
  static absl::StatusOr<std::unique_ptr<PhaseClock>> Create(const Backend& backend, int64_t marks);

  void StartStep();
  // What is enqueued from here on belongs to `phase`.
  absl::Status Enter(Phase phase);
  // After the last phase's work is enqueued.
  absl::Status EndStep();
  // After the device has done all of it.
  absl::StatusOr<PhaseSeconds> Read();

 private:
  struct Mark {
    Event event;
    Phase phase = nullptr;
  };
  explicit PhaseClock(const Backend& backend) : backend_(backend) {}
  void CloseHostPhase();

  const Backend& backend_;
  std::vector<Mark> marks_;  // device backends only
  size_t used_ = 0;
  Phase host_phase_ = nullptr;  // that the host's clock is measuring
  Phase phase_ = nullptr;       // entered last
  absl::Duration since_;
  PhaseSeconds seconds_;
};

}  // namespace mt
