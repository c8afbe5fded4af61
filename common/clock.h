// Time is passed in. Wall time is for people and records; deadlines use EventLoop timers or Monotonic().
#pragma once

#include "absl/time/time.h"

namespace mt {

class Clock {
 public:
  virtual ~Clock() = default;
  // Wall time; may jump.
  virtual absl::Time Now() = 0;
  // Since an arbitrary start; never goes back.
  virtual absl::Duration Monotonic() = 0;

  // The machine's clock; lives forever, thread-safe.
  static Clock* Real();
};

}  // namespace mt
