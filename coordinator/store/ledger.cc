#include "coordinator/store/ledger.h"

#include "common/log.h"
#include "common/proto_time.h"

namespace mt {
namespace {

// Keeps what the row was before the first edit of a Try.
template <typename Undo, typename Rows, typename Key>
void Remember(Undo& undo, const Rows& rows, const Key& key) {
  const auto row = rows.find(key);
  if (row == rows.end()) {
    undo.try_emplace(key, std::nullopt);
  } else {
    undo.try_emplace(key, row->second);
  }
}

template <typename Undo, typename Rows>
void Restore(Undo& undo, Rows& rows) {
  for (auto& [key, row] : undo) {
    if (row.has_value()) {
      rows[key] = std::move(*row);
    } else {
      rows.erase(key);
    }
  }
}

}  // namespace

Ledger::~Ledger() {
  if (timer_ != 0) options_.loop->Cancel(timer_);
}

absl::Status Ledger::Load() {
  MT_ASSIGN_OR_RETURN(state_, options_.store->Load());
  return absl::OkStatus();
}

store::JobRecord& Ledger::EditJob(const std::string& id) {
  if (undo_) Remember(undo_->jobs, state_.jobs, id);
  dirty_jobs_.insert(id);
  changed_jobs_.insert(id);
  Wake(options_.group_commit);
  return state_.jobs[id];
}

v1::TrainingProgress& Ledger::EditProgress(const std::string& job_id) {
  dirty_progress_.insert(job_id);
  changed_jobs_.insert(job_id);
  Wake(options_.group_commit);
  return state_.progress[job_id];
}

store::AttemptRecord& Ledger::EditAttempt(const std::string& job_id, int generation) {
  const std::pair key(job_id, generation);
  if (undo_) Remember(undo_->attempts, state_.attempts, key);
  dirty_attempts_.insert(key);
  changed_jobs_.insert(job_id);
  Wake(options_.group_commit);
  return state_.attempts[key];
}

store::CheckpointRecord& Ledger::EditCheckpoint(const std::string& job_id, int64_t step) {
  const std::pair key(job_id, step);
  dirty_checkpoints_.insert(key);
  changed_jobs_.insert(job_id);
  Wake(options_.group_commit);
  return state_.checkpoints[key];
}

void Ledger::EraseCheckpoint(const std::string& job_id, int64_t step) {
  const std::pair key(job_id, step);
  if (state_.checkpoints.erase(key) == 0) return;
  dirty_checkpoints_.insert(key);
  changed_jobs_.insert(job_id);
  Wake(options_.group_commit);
}

store::NodeRecord& Ledger::EditNode(const std::string& name) {
  if (undo_) Remember(undo_->nodes, state_.nodes, name);
  dirty_nodes_.insert(name);
  Wake(options_.group_commit);
  return state_.nodes[name];
}

void Ledger::AddEvent(absl::string_view kind, const std::string& job_id, const std::string& node,
                      int attempt, const std::string& message) {
  v1::Event& event = events_.emplace_back();
  event.set_sequence(++state_.last_event_sequence);
  SetTime(event.mutable_time(), options_.loop->clock()->Now());
  event.set_job_id(job_id);
  event.set_node(node);
  event.set_kind(std::string(kind));
  event.set_message(message);
  event.set_attempt(attempt);
  MT_LOG(Info) << event.kind() << (job_id.empty() ? "" : " " + job_id)
               << (node.empty() ? "" : " " + node) << ": " << message;
  Wake(options_.group_commit);
}

void Ledger::AfterCommit(std::function<void()> effect, bool prompt) {
  effects_.push_back(std::move(effect));
  Wake(prompt ? absl::ZeroDuration() : options_.group_commit);
}

void Ledger::Wake(absl::Duration delay) {
  if (broken_) return;
  if (full_) delay = options_.full_disk_retry;
  const absl::Duration due = options_.loop->clock()->Monotonic() + delay;
  if (timer_ != 0) {
    if (timer_due_ <= due) return;
    options_.loop->Cancel(timer_);
  }
  timer_due_ = due;
  timer_ = options_.loop->After(delay, [this] {
    timer_ = 0;
    (void)Flush();
  });
}

StoreBatch Ledger::MakeBatch() const {
  StoreBatch batch;
  for (const auto& id : dirty_jobs_) {
    if (auto it = state_.jobs.find(id); it != state_.jobs.end()) batch.jobs.insert(*it);
  }
  for (const auto& id : dirty_progress_) batch.progress.insert(*state_.progress.find(id));
  for (const auto& key : dirty_attempts_) {
    if (auto it = state_.attempts.find(key); it != state_.attempts.end())
      batch.attempts.insert(*it);
  }
  for (const auto& key : dirty_checkpoints_) {
    const auto it = state_.checkpoints.find(key);
    batch.checkpoints[key] =
        it == state_.checkpoints.end() ? std::nullopt : std::optional(it->second);
  }
  for (const auto& name : dirty_nodes_) {
    if (auto it = state_.nodes.find(name); it != state_.nodes.end()) batch.nodes.insert(*it);
  }
  batch.events = events_;
  return batch;
}

absl::Status Ledger::Flush() {
  if (broken_)
    return absl::FailedPreconditionError("the coordinator's state store is broken; it is ending");
  if (flushing_) {  // from inside an effect: what it changed goes with the next flush
    Wake(absl::ZeroDuration());
    return absl::OkStatus();
  }
  if (options_.before_commit) options_.before_commit();
  const StoreBatch batch = MakeBatch();
  if (!batch.empty()) {
    const absl::Status status = options_.store->Commit(batch);
    if (absl::IsResourceExhausted(status)) {
      if (!full_) {
        MT_LOG(Error) << "the state disk is full; nothing new is accepted, running jobs go on: "
                      << status.message();
      }
      full_ = true;
      ++full_errors_;
      Wake(options_.full_disk_retry);
      return status;
    }
    if (!status.ok()) {
      broken_ = true;
      effects_.clear();
      MT_LOG(Error) << "the state store is broken: " << status.ToString();
      if (options_.on_fatal) options_.on_fatal(status);
      return absl::FailedPreconditionError(
          absl::StrCat("the coordinator's state store is broken: ", status.message()));
    }
    ++commits_;
    if (full_) {
      MT_LOG(Info) << "the state disk has room again";
    }
    full_ = false;
    dirty_jobs_.clear();
    dirty_progress_.clear();
    dirty_attempts_.clear();
    dirty_checkpoints_.clear();
    dirty_nodes_.clear();
    events_.clear();
  }
  if (undo_) undo_.reset();
  flushing_ = true;
  const auto effects = std::exchange(effects_, {});
  for (const auto& effect : effects) effect();
  flushing_ = false;
  // Not part of the flush: a watcher may ask for anything, another flush included.
  const auto changed = std::exchange(changed_jobs_, {});
  if (!changed.empty() && options_.after_commit) options_.after_commit(changed);
  return absl::OkStatus();
}

absl::Status Ledger::Try(const std::function<void()>& change) {
  MT_RETURN_IF_ERROR(Flush());
  // Effects may have changed rows again: those must not be undone with ours.
  if (!MakeBatch().empty()) MT_RETURN_IF_ERROR(Flush());
  const int64_t last_event = state_.last_event_sequence;
  const size_t num_events = events_.size(), num_effects = effects_.size();
  undo_.emplace();
  change();
  const absl::Status status = Flush();
  if (status.ok() || broken_) {
    undo_.reset();
    return status;
  }
  Restore(undo_->jobs, state_.jobs);
  Restore(undo_->attempts, state_.attempts);
  Restore(undo_->nodes, state_.nodes);
  undo_.reset();
  events_.resize(num_events);
  effects_.resize(num_effects);
  state_.last_event_sequence = last_event;
  return status;
}

}  // namespace mt
