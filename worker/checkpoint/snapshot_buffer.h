// Host memory that a snapshot of the state is copied to, and the copying.
//
// From host memory the copy is done when Begin returns. From a device it is only enqueued then, on a stream of its own
// behind all that the compute stream holds, into memory that the device writes without a stop between; the step that
// follows runs beside it, and only its update of the state waits, on the device, for an event.
//
// Invariant: between Begin and a Finish that has returned, the contents belong to the copy.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "common/status.h"
#include "kernels/abi/mt_backend.h"

namespace mt {

// The device must change the state only after `copied`, and records `reached` on its compute stream where it begins to
// wait for that. Both live until the next call, or the end of the buffer.
using BeforeNextUpdate = std::function<absl::Status(mt_event copied, mt_event reached)>;

class SnapshotBuffer {
 public:
  struct Piece {
    const void* from = nullptr;
    size_t at = 0;  // in the buffer
    size_t bytes = 0;
  };
  virtual ~SnapshotBuffer() = default;  // waits for a copy in flight

  // On the training thread. An error of the device leaves the contents undefined.
  virtual absl::Status Begin(const std::vector<Piece>& pieces) = 0;
  // Until the contents are whole. Any thread, one at a time.
  virtual absl::Status Finish() = 0;
  // After Finish: how long the device's next update stood still for this copy; 0 if it has not come there yet.
  virtual double UpdateStallSeconds() = 0;
  virtual const char* data() const = 0;
};

// RESOURCE_EXHAUSTED: no memory. `device` null: the state is in host memory, `before_next_update` unused; else it is
// needed, and the device is open.
absl::StatusOr<std::unique_ptr<SnapshotBuffer>> NewSnapshotBuffer(
    size_t bytes, const mt_backend* device, BeforeNextUpdate before_next_update);

}  // namespace mt
