// How the host waits for a device whose work may depend on other ranks.
#pragma once

#include <functional>
#include <span>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/status.h"
#include "kernels/abi/mt_backend.h"
#include "worker/comm/communicator.h"

namespace mt {

// AbiStatus of "<what>: <the backend's message>".
absl::Status DeviceStatus(const mt_backend& backend, int32_t code, absl::string_view what);

// The time that waits use; tests have their own.
struct WaitTime {
  Clock* clock = Clock::Real();
  std::function<void(absl::Duration)> pause = absl::SleepFor;
};

// Returns when the work before `event` is done and no group has failed; the first group's failure otherwise, whether or not
// the event ever completes (aborted work completes with garbage). Null groups are skipped. Looks at the event in growing
// intervals of at most 200 microseconds; with no group at all the backend's own wait is used.
absl::Status WaitForEvent(const mt_backend& backend, mt_event event,
                          std::span<Communicator* const> groups, const WaitTime& time = {});

}  // namespace mt
