// Virtual time. One SimScheduler is the world's queue; every simulated process has a SimEventLoop on it. Tasks run one at a
// time, ordered by (time, order of creation): a run is a function of its seed alone. Single-threaded.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "common/event_loop.h"

namespace mt {

class SimEventLoop;

class SimScheduler {
 public:
  SimScheduler();
  ~SimScheduler();
  absl::Duration now() const { return now_; }
  // Runs the next task; false when none is left.
  bool Step();
  // Runs everything due until `time` (since the start), then sets the clock there.
  void RunUntil(absl::Duration time);
  // Runs until `done` holds (checked after each task) or `limit` is reached; returns whether it holds.
  bool RunUntil(const std::function<bool()>& done, absl::Duration limit);
  // A task that belongs to no process (network, faults).
  uint64_t At(absl::Duration time, EventLoop::Task task);
  void Cancel(uint64_t id);
  uint64_t steps() const { return steps_; }

 private:
  friend class SimEventLoop;
  using Key = std::pair<absl::Duration, uint64_t>;
  uint64_t Add(absl::Duration time, SimEventLoop* owner, EventLoop::Task task);

  absl::Duration now_;
  uint64_t last_id_ = 0, steps_ = 0;
  struct Entry {
    SimEventLoop* owner;
    EventLoop::Task task;
  };
  std::map<Key, Entry> queue_;
  std::map<uint64_t, absl::Duration> due_;
};

class SimClock : public Clock {
 public:
  explicit SimClock(SimScheduler* scheduler) : scheduler_(scheduler) {}
  absl::Time Now() override {
    return absl::FromUnixSeconds(1'700'000'000) + scheduler_->now() + wall_offset;
  }
  absl::Duration Monotonic() override { return scheduler_->now(); }
  absl::Duration wall_offset = absl::ZeroDuration();  // wall time may jump

 private:
  SimScheduler* const scheduler_;
};

// One process's loop. Destroying it is the process's death: its tasks and timers never run.
class SimEventLoop : public EventLoop {
 public:
  explicit SimEventLoop(SimScheduler* scheduler);
  ~SimEventLoop() override;
  void Post(Task task) override;
  TimerId After(absl::Duration delay, Task task) override;
  void Cancel(TimerId timer) override;
  bool OnLoop() const override;
  Clock* clock() override { return &clock_; }
  SimClock* sim_clock() { return &clock_; }
  // A stopped process (SIGSTOP): its tasks wait and run, in order, when it goes on.
  void SetStopped(bool stopped);

 private:
  friend class SimScheduler;
  SimScheduler* const scheduler_;
  SimClock clock_;
  bool stopped_ = false, running_ = false;
  std::set<SimScheduler::Key> keys_;
  std::vector<std::pair<uint64_t, Task>> held_;  // came due while stopped
};

}  // namespace mt
