#include "coordinator/store/memory_store.h"

namespace mt {
namespace {

class MemoryStore : public StateStore {
 public:
  explicit MemoryStore(std::shared_ptr<MemoryDisk> disk) : disk_(std::move(disk)) {}

  absl::StatusOr<StoredState> Load() override {
    ++disk_->state.epoch;
    if (disk_->state.cluster_id.empty()) disk_->state.cluster_id = "memory";
    return disk_->state;
  }

  absl::Status Commit(const StoreBatch& batch) override {
    using Death = MemoryDisk::Death;
    if (dead_) return absl::AbortedError("this coordinator is dead");
    const Death death = disk_->death ? disk_->death() : Death::kNo;
    if (death == Death::kBefore) return Die();
    if (disk_->full)
      return absl::ResourceExhaustedError("state disk full; free space on the state folder's disk");
    StoredState& state = disk_->state;
    for (const auto& [id, record] : batch.jobs) state.jobs[id] = record;
    for (const auto& [id, record] : batch.progress) state.progress[id] = record;
    for (const auto& [key, record] : batch.attempts) state.attempts[key] = record;
    for (const auto& [key, record] : batch.checkpoints) {
      if (record.has_value()) {
        state.checkpoints[key] = *record;
      } else {
        state.checkpoints.erase(key);
      }
    }
    for (const auto& [name, record] : batch.nodes) state.nodes[name] = record;
    for (const v1::Event& event : batch.events) {
      disk_->events.push_back(event);
      state.last_event_sequence = std::max(state.last_event_sequence, event.sequence());
    }
    ++disk_->commits;
    return death == Death::kAfter ? Die() : absl::OkStatus();
  }

  absl::StatusOr<std::vector<v1::Event>> ListEvents(const std::string& job_id,
                                                    int64_t after_sequence, int limit) override {
    std::vector<v1::Event> events;
    for (const v1::Event& event : disk_->events) {
      if (event.sequence() <= after_sequence || (!job_id.empty() && event.job_id() != job_id))
        continue;
      events.push_back(event);
    }
    if (static_cast<int>(events.size()) > limit) events.erase(events.begin(), events.end() - limit);
    return events;
  }

 private:
  absl::Status Die() {
    dead_ = true;
    return absl::AbortedError("the process died while committing");
  }

  std::shared_ptr<MemoryDisk> disk_;
  bool dead_ = false;
};

}  // namespace

std::unique_ptr<StateStore> NewMemoryStore(std::shared_ptr<MemoryDisk> disk) {
  return std::make_unique<MemoryStore>(std::move(disk));
}

}  // namespace mt
