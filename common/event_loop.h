// The daemons' logic runs on one EventLoop each: one task at a time, in order, so managers need no locks. The real loop
// is a thread; the simulation's loop is virtual time, so that a cluster of loops runs in one thread, faster than time.
//
// Invariant: tasks posted from one thread run in the order posted; a timer never runs before its time; a cancelled timer
// never runs if Cancel was called on the loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace mt {

class EventLoop {
 public:
  using Task = absl::AnyInvocable<void()>;
  using TimerId = uint64_t;  // 0 is never a timer

  virtual ~EventLoop() = default;
  // Runs `task` soon. Thread-safe.
  virtual void Post(Task task) = 0;
  // Runs `task` once, `delay` from now (at once if not positive). Thread-safe.
  virtual TimerId After(absl::Duration delay, Task task) = 0;
  // Forgets a timer that has not run. Call on the loop. Unknown or past ids are ignored.
  virtual void Cancel(TimerId timer) = 0;
  // True on the loop's own thread (for MT_CHECKs).
  virtual bool OnLoop() const = 0;
  virtual Clock* clock() = 0;
};

// A loop on its own thread. Destruction runs what was posted before it, drops timers and joins; never destroy it from
// one of its own tasks.
std::unique_ptr<EventLoop> NewThreadEventLoop(std::string name, Clock* clock = Clock::Real());

}  // namespace mt
