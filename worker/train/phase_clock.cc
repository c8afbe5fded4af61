#include "worker/train/phase_clock.h"

#include <utility>

#include "common/clock.h"

namespace mt {

absl::StatusOr<std::unique_ptr<PhaseClock>> PhaseClock::Create(const Backend& backend,
                                                               int64_t marks) {
  std::unique_ptr<PhaseClock> clock(new PhaseClock(backend));
  if (backend.host_memory()) return clock;
  for (int64_t i = 0; i <= marks; ++i) {
    MT_ASSIGN_OR_RETURN(Event event, Event::Create(backend));
    clock->marks_.push_back({std::move(event)});
  }
  return clock;
}

void PhaseClock::StartStep() {
  seconds_ = {};
  used_ = 0;
  host_phase_ = phase_ = nullptr;
}

void PhaseClock::CloseHostPhase() {
  const absl::Duration now = Clock::Real()->Monotonic();
  if (host_phase_ != nullptr) seconds_.*host_phase_ += absl::ToDoubleSeconds(now - since_);
  host_phase_ = nullptr;
  since_ = now;
}

absl::Status PhaseClock::Enter(Phase phase) {
  CloseHostPhase();
  if (backend_.host_memory() || phase == &PhaseSeconds::data) {
    host_phase_ = phase;
    return absl::OkStatus();
  }
  if (phase == phase_) return absl::OkStatus();
  phase_ = phase;
  if (used_ + 1 >= marks_.size()) return absl::OkStatus();  // the rest counts to the phase before
  Mark& mark = marks_[used_++];
  mark.phase = phase;
  return mark.event.Record();
}

absl::Status PhaseClock::EndStep() {
  CloseHostPhase();
  if (backend_.host_memory()) return absl::OkStatus();
  Mark& mark = marks_[used_++];
  mark.phase = nullptr;
  return mark.event.Record();
}

absl::StatusOr<PhaseSeconds> PhaseClock::Read() {
  for (size_t i = 0; i + 1 < used_; ++i) {
    float milliseconds = 0;
    MT_RETURN_IF_ERROR(
        backend_.ToStatus(backend_.abi().event_milliseconds(
                              marks_[i].event.get(), marks_[i + 1].event.get(), &milliseconds),
                          "reading a phase's time"));
    seconds_.*marks_[i].phase += 1e-3 * static_cast<double>(milliseconds);
  }
  return seconds_;
}

}  // namespace mt
