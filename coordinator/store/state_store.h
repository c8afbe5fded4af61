// The coordinator's durable memory. At start it is read as a whole; afterwards every change is a batch of new row values.
//
// Invariant: Commit is all or nothing, and what it has answered OK survives a crash of process and machine. The caller
// tells nobody of a change before Commit has answered OK. Not thread-safe: used on the coordinator's loop.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"
#include "coordinator/store/records.pb.h"

namespace mt {

struct StoredState {
  int64_t epoch = 0;       // of this start: greater than of every earlier one on this state
  std::string cluster_id;  // made at the first start
  int64_t last_event_sequence = 0;
  std::map<std::string, store::JobRecord> jobs;
  std::map<std::string, v1::TrainingProgress> progress;                  // by job
  std::map<std::pair<std::string, int>, store::AttemptRecord> attempts;  // by job, generation
  std::map<std::pair<std::string, int64_t>, store::CheckpointRecord> checkpoints;  // by job, step
  std::map<std::string, store::NodeRecord> nodes;
};

struct StoreBatch {
  std::map<std::string, store::JobRecord> jobs;
  std::map<std::string, v1::TrainingProgress> progress;
  std::map<std::pair<std::string, int>, store::AttemptRecord> attempts;
  std::map<std::pair<std::string, int64_t>, std::optional<store::CheckpointRecord>>
      checkpoints;  // nullopt = delete
  std::map<std::string, store::NodeRecord> nodes;
  std::vector<v1::Event> events;

  bool empty() const {
    return jobs.empty() && progress.empty() && attempts.empty() && checkpoints.empty() &&
           nodes.empty() && events.empty();
  }
};

class StateStore {
 public:
  virtual ~StateStore() = default;
  // Once, first. Counts the epoch up durably. DATA_LOSS when the store is damaged, FAILED_PRECONDITION when it is of a newer
  // version or another coordinator holds it.
  virtual absl::StatusOr<StoredState> Load() = 0;
  // RESOURCE_EXHAUSTED: disk full, nothing changed, try again later. Any other error: whether the batch is durable is
  // unknown and the process must stop (the next start reads what is true).
  virtual absl::Status Commit(const StoreBatch& batch) = 0;
  // The newest `limit` committed events after `after_sequence`, oldest first; every job's when `job_id` is empty.
  virtual absl::StatusOr<std::vector<v1::Event>> ListEvents(const std::string& job_id,
                                                            int64_t after_sequence, int limit) = 0;
};

}  // namespace mt
