// When has one rank been silent for too long? The deadline of a step is learned: five times the
// 99th percentile of the last 100 steps, the first five steps not counted (they warm up), and never
// below fault.min_step_deadline. Every other phase, and the first step, has fault.start_deadline.
//
// All ranks of a job fall silent together when one hangs: the others wait for it in a collective.
// So that the guilty one is named, a rank that is heard (its process still sends signs of life) and
// says that it waits for peers gets half as much again.
#pragma once

#include <deque>
#include <string>

#include "absl/time/time.h"
#include "mt/v1/rank.pb.h"

namespace mt {

class HangDetector {
 public:
  HangDetector(absl::Duration min_step_deadline, absl::Duration start_deadline, absl::Duration now)
      : min_step_deadline_(min_step_deadline),
        start_deadline_(start_deadline),
        progressed_(now),
        heard_(now) {}

  // A Progress message. Only a change of phase or step is progress; the same again is a sign of
  // life.
  void OnProgress(const v1::Progress& progress, absl::Duration now);
  // Present deadline, counted from the last progress.
  absl::Duration Deadline(absl::Duration now) const;
  bool IsHung(absl::Duration now) const { return now - progressed_ >= Deadline(now); }
  // Silence until now does not count.
  void Pardon(absl::Duration now) { progressed_ = now; }
  // As much of the silence does not count: nobody listened.
  void Excuse(absl::Duration silence) {
    progressed_ += silence;
    heard_ += silence;
    step_began_ += silence;
  }
  bool has_stepped() const { return steps_seen_ > 0; }
  absl::Duration Silent(absl::Duration now) const { return now - progressed_; }

  const std::string& phase() const { return phase_; }
  int64_t step() const { return step_; }
  const std::string& where() const { return where_; }

  static constexpr char kWaitingPrefix[] = "waiting: ";  // of Progress.where: inside a collective

 private:
  absl::Duration Percentile99() const;

  const absl::Duration min_step_deadline_, start_deadline_;
  absl::Duration progressed_, heard_, step_began_;
  bool in_step_ = false;
  int64_t steps_seen_ = 0;
  std::deque<absl::Duration> recent_;  // durations of the last steps
  std::string phase_ = "start";
  std::string where_;
  int64_t step_ = 0;
};

}  // namespace mt
