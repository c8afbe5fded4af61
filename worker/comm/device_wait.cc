#include "worker/comm/device_wait.h"

#include <algorithm>

#include "worker/backend/abi_status.h"

namespace mt {
namespace {

constexpr absl::Duration kFirstPause = absl::Microseconds(10);
constexpr absl::Duration kLongestPause = absl::Microseconds(200);

absl::Status FirstFailure(std::span<Communicator* const> groups) {
  for (const Communicator* group : groups) {
    if (group != nullptr) MT_RETURN_IF_ERROR(group->Health());
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DeviceStatus(const mt_backend& backend, int32_t code, absl::string_view what) {
  if (code >= 0) return absl::OkStatus();
  const char* message = backend.error_message();
  return AbiStatus(
      code, absl::StrCat(what, ": ", message == nullptr || *message == 0 ? "no message" : message));
}

absl::Status WaitForEvent(const mt_backend& backend, mt_event event,
                          std::span<Communicator* const> groups, const WaitTime& time) {
  if (std::all_of(groups.begin(), groups.end(),
                  [](const Communicator* group) { return group == nullptr; })) {
    return DeviceStatus(backend, backend.event_synchronize(event), "waiting for the device");
  }
  for (absl::Duration pause = kFirstPause;; pause = std::min(2 * pause, kLongestPause)) {
    const int32_t code = backend.event_query(event);
    // After the look at the event: a failure is noted before its work is aborted, so that work which ended by it is not
    // taken for done.
    MT_RETURN_IF_ERROR(FirstFailure(groups));
    if (code != MT_IN_PROGRESS) return DeviceStatus(backend, code, "waiting for the device");
    time.pause(pause);
  }
}

}  // namespace mt
