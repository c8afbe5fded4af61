// Writes one rank's part of checkpoints behind the training.
//
// Snapshot, called between steps, copies the state to host memory (allocated once, reused) or, from
// a device, begins to (snapshot_buffer.h), and returns; a thread of this class waits for the copy and
// writes the rank's file: temporary name, sync, rename, sync of the folder. Only a file that is whole
// and durable is reported by `on_written`; a checkpoint exists only once the coordinator has had its
// manifest committed.
//
// Invariant: at most one write is in flight. Snapshot waits for the one before (that wait counts as
// stall).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/env.h"
#include "common/status.h"
#include "mt/v1/worker.pb.h"
#include "worker/checkpoint/snapshot_buffer.h"
#include "worker/checkpoint/state.h"

namespace mt {

struct CheckpointWriterOptions {
  Env* env = Env::Real();
  Clock* clock = Clock::Real();
  std::string root;  // files go to <root>/<job_id>/step-<8 digits>/shard-r<rank>.safetensors
  std::string job_id;
  // Of the job's attempt: one that ends late does not write into the temporary file of the next.
  int generation = 0;
  int rank = 0;
  int world_size = 1;
  // Whose memory the boxes are in; null = host memory. Open, and outlives the writer.
  const mt_backend* device = nullptr;
  BeforeNextUpdate before_next_update;  // with a device; called by Snapshot
  // Called on the writer's thread, in the order of the snapshots; one of them per successful
  // Snapshot. Must not call back.
  std::function<void(const v1::ShardWritten&)> on_written;
  std::function<void(const v1::CheckpointFailed&)>
      on_failed;  // reason: disk_full | permission | io; nothing is left behind
};

class CheckpointWriter {
 public:
  // `boxes` stay valid as long as the writer. INVALID_ARGUMENT: an impossible job id or box, or one
  // box twice.
  static absl::StatusOr<std::unique_ptr<CheckpointWriter>> Create(CheckpointWriterOptions options,
                                                                  std::vector<TensorBox> boxes);
  virtual ~CheckpointWriter() = default;  // waits for the write in flight

  // Returns the seconds that it held up its caller. ShardWritten tells those and what the device's
  // next update waited for the copy. An error is that of beginning the copy; later ones and those of
  // the disk go to on_failed.
  virtual absl::StatusOr<double> Snapshot(const TrainingPosition& position) = 0;
  // Until nothing is in flight. Returns the last write's error, if it failed.
  virtual absl::Status Wait() = 0;
  virtual int64_t bytes() const = 0;  // of the host copy
};

}  // namespace mt
