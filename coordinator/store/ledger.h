// The coordinator's state: an image of the store in memory, the changes that are not durable yet, and what must not be
// told before they are.
//
// Invariant: effects (messages, notifications) run in the order queued, each only after every change made before it was
// queued is durable. When the disk is full changes and effects wait together, in order, and are tried again.
// When the store breaks, effects are dropped for good: the next start reads what is true.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/event_loop.h"
#include "coordinator/store/state_store.h"

namespace mt {

struct LedgerOptions {
  EventLoop* loop = nullptr;
  StateStore* store = nullptr;
  absl::Duration group_commit = absl::Milliseconds(20);
  absl::Duration full_disk_retry = absl::Seconds(1);
  std::function<void()> before_commit;                                  // logs are synced here
  std::function<void(const std::set<std::string>& jobs)> after_commit;  // jobs whose rows changed
  std::function<void(absl::Status)> on_fatal;
};

class Ledger {
 public:
  explicit Ledger(LedgerOptions options) : options_(std::move(options)) {}
  ~Ledger();

  absl::Status Load();
  const StoredState& state() const { return state_; }

  // A row to change; made when absent. The reference holds until the row is erased.
  store::JobRecord& EditJob(const std::string& id);
  v1::TrainingProgress& EditProgress(const std::string& job_id);
  store::AttemptRecord& EditAttempt(const std::string& job_id, int generation);
  store::CheckpointRecord& EditCheckpoint(const std::string& job_id, int64_t step);
  void EraseCheckpoint(const std::string& job_id, int64_t step);
  store::NodeRecord& EditNode(const std::string& name);
  void AddEvent(absl::string_view kind, const std::string& job_id, const std::string& node,
                int attempt, const std::string& message);

  // Queues an effect. Prompt ones are committed for at once, others with the next group.
  void AfterCommit(std::function<void()> effect, bool prompt = true);
  // Commits and lets the effects out now. RESOURCE_EXHAUSTED: they wait. FAILED_PRECONDITION: the store is broken.
  absl::Status Flush();
  // Makes `change` durable at once, or undoes its edits, events and effects and says why. `change` must do nothing else.
  absl::Status Try(const std::function<void()>& change);
  // Jobs with undurable changes are announced by after_commit; this adds one whose rows did not change.
  void Announce(const std::string& job_id) { changed_jobs_.insert(job_id); }

  bool broken() const { return broken_; }
  int64_t commits() const { return commits_; }
  int64_t full_errors() const { return full_errors_; }

 private:
  struct Undo {
    std::map<std::string, std::optional<store::JobRecord>> jobs;
    std::map<std::pair<std::string, int>, std::optional<store::AttemptRecord>> attempts;
    std::map<std::string, std::optional<store::NodeRecord>> nodes;
  };
  StoreBatch MakeBatch() const;
  void Wake(absl::Duration delay);

  const LedgerOptions options_;
  StoredState state_;
  std::set<std::string> dirty_jobs_, dirty_progress_, dirty_nodes_;
  std::set<std::pair<std::string, int>> dirty_attempts_;
  std::set<std::pair<std::string, int64_t>> dirty_checkpoints_;
  std::vector<v1::Event> events_;
  std::vector<std::function<void()>> effects_;
  std::set<std::string> changed_jobs_;
  std::optional<Undo> undo_;
  bool flushing_ = false, broken_ = false, full_ = false;
  EventLoop::TimerId timer_ = 0;
  absl::Duration timer_due_;
  int64_t commits_ = 0, full_errors_ = 0;
};

}  // namespace mt
