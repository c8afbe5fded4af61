// JobManager: what workers report. Handlers change rows; Settle acts on them.
#include <algorithm>
#include <bit>

#include "absl/strings/match.h"
#include "common/log.h"
#include "common/proto_time.h"
#include "coordinator/jobs/failure.h"
#include "coordinator/jobs/job_manager.h"

namespace mt {
namespace {

using store::AttemptRecord;
using store::JobRecord;
using store::RankRecord;

constexpr int kHistoryPoints = 64;
constexpr int kLastLines = 40;
constexpr size_t kLastLineBytes = 2000;

// Every `stride` steps one point, the stride a power of two that doubles when 64 points are full: evenly thinned, and the same
// whatever was restarted in between.
void AddToHistory(v1::TrainingProgress& progress, int64_t before, int64_t step, float loss) {
  auto stride = [](int64_t at) {
    return static_cast<int64_t>(std::bit_ceil(
        static_cast<uint64_t>(std::max<int64_t>(1, (at + kHistoryPoints - 1) / kHistoryPoints))));
  };
  auto* history = progress.mutable_loss_history();
  for (int64_t s = stride(before); s < stride(step); s *= 2) {
    int kept = 0;
    for (int i = 1; i < history->size(); i += 2) history->Set(kept++, history->Get(i));
    history->Truncate(kept);
  }
  if (step / stride(step) > before / stride(step) && history->size() < kHistoryPoints)
    history->Add(loss);
}

}  // namespace

void JobManager::OnWorkerEvent(const std::string& node, const v1::WorkerEvent& event) {
  switch (event.body_case()) {
    case v1::WorkerEvent::kLogLines:
      OnLogLines(node, event);
      return;
    case v1::WorkerEvent::kFileFetched:
      checkpoints_->OnFileFetched(node, event);
      return;
    case v1::WorkerEvent::kManifestCommitted:
      checkpoints_->OnManifestCommitted(node, event);
      return;
    default:
      break;
  }
  // The rest is fenced by generation.
  const std::string& id = event.job_id();
  const JobRecord* job = Find(id);
  const AttemptRecord* attempt = Attempt(id);
  if (job == nullptr || attempt == nullptr || HasEnded(job->job().state()) ||
      attempt->generation() != event.generation() || attempt->has_ended() || event.rank() < 0 ||
      event.rank() >= attempt->ranks_size() ||
      attempt->ranks(event.rank()).placement().node() != node) {
    ++stale_events_;
    return;
  }
  const RankRecord& rank = attempt->ranks(event.rank());
  const int generation = event.generation();
  if (rank.state() == RankRecord::STATE_LOST && !event.has_rank_exited()) {
    ++stale_events_;
    return;
  }
  last_progress_[id] = loop_->clock()->Monotonic();
  switch (event.body_case()) {
    case v1::WorkerEvent::kRankStarted:
      if (rank.state() == RankRecord::STATE_ASSIGNED) {
        RankRecord& edited = *ledger_->EditAttempt(id, generation).mutable_ranks(event.rank());
        edited.set_state(RankRecord::STATE_STARTED);
        asked_to_pause_.erase({id, generation, node});  // this rank may have come after the asking
        edited.mutable_placement()->set_pid(event.rank_started().pid());
      }
      break;
    case v1::WorkerEvent::kRankReady:
      if (rank.state() == RankRecord::STATE_ASSIGNED || rank.state() == RankRecord::STATE_STARTED) {
        AttemptRecord& edited = ledger_->EditAttempt(id, generation);
        edited.mutable_ranks(event.rank())->set_state(RankRecord::STATE_READY);
        if (event.rank() == 0) *edited.mutable_operations() = event.rank_ready().operations();
      }
      break;
    case v1::WorkerEvent::kRankExited:
      OnRankExited(*attempt, event);
      break;
    case v1::WorkerEvent::kDataChecked:
      OnDataChecked(*attempt, node, event.data_checked());
      break;
    case v1::WorkerEvent::kRankHung: {
      RankRecord& edited = *ledger_->EditAttempt(id, generation).mutable_ranks(event.rank());
      *edited.mutable_hung() = event.rank_hung();
      if (!edited.has_exit_time()) *edited.mutable_exit_time() = event.time();
      ++metrics_[id].hangs;
      break;
    }
    case v1::WorkerEvent::kStepReport:
      OnStepReport(*job, event);
      return;  // changes no state: no need to look again
    case v1::WorkerEvent::kRankReport:
      metrics_[id].ranks[event.rank()] = event.rank_report();
      OnFirstStep(id, event.rank_report().step());
      return;
    case v1::WorkerEvent::kShardWritten:
      checkpoints_->OnShardWritten(node, event);
      break;
    case v1::WorkerEvent::kCheckpointFailed:
      checkpoints_->OnCheckpointFailed(node, event);
      break;
    default:
      break;
  }
  Touch(id);
}

void JobManager::OnFirstStep(const std::string& job_id, int64_t step) {
  const AttemptRecord* attempt = Attempt(job_id);
  if (attempt->stepped() ||
      step <= (attempt->restore_job_id().empty() ? 0 : attempt->restore_step()))
    return;
  AttemptRecord& edited = ledger_->EditAttempt(job_id, attempt->generation());
  edited.set_stepped(true);
  Metrics& metrics = metrics_[job_id];
  metrics.start_seconds = absl::ToDoubleSeconds(loop_->clock()->Now() - ToTime(edited.started()));
  if (const auto failed = failed_at_.extract(job_id)) {
    metrics.recovery_seconds = absl::ToDoubleSeconds(loop_->clock()->Monotonic() - failed.mapped());
  }
  if (Find(job_id)->job().state() == v1::JOB_STATE_STARTING) {
    SetReason(job_id, v1::JOB_STATE_RUNNING, "");
    ledger_->AddEvent("job_running", job_id, "", edited.generation(),
                      absl::StrCat("step ", step, " is done"));
  }
}

void JobManager::OnStepReport(const JobRecord& job, const v1::WorkerEvent& event) {
  const std::string& id = event.job_id();
  const v1::TrainingProgress& report = event.step_report().progress();
  v1::TrainingProgress& progress = ledger_->EditProgress(id);
  auto history = progress.loss_history();
  const double validation_loss = progress.validation_loss();
  const int64_t validation_step = progress.validation_step();
  progress = report;
  if (report.validation_step() == 0) {  // no evaluation came with this step; the newest one stays
    progress.set_validation_loss(validation_loss);
    progress.set_validation_step(validation_step);
  }
  *progress.mutable_loss_history() = std::move(history);
  if (!progress.has_time()) *progress.mutable_time() = event.time();
  if (progress.total_steps() == 0) progress.set_total_steps(job.job().spec().training().steps());
  if (report.step() > job.furthest_step()) {
    AddToHistory(progress, job.furthest_step(), report.step(), static_cast<float>(report.loss()));
    JobRecord& edited = ledger_->EditJob(id);
    edited.set_productive_seconds(edited.productive_seconds() +
                                  static_cast<double>(report.step() - edited.furthest_step()) *
                                      report.step_seconds());
    edited.set_furthest_step(report.step());
  }
  OnFirstStep(id, report.step());
}

void JobManager::OnRankExited(const AttemptRecord& attempt, const v1::WorkerEvent& event) {
  const RankRecord& before = attempt.ranks(event.rank());
  if (before.state() == RankRecord::STATE_EXITED) return;
  const bool was_ready = before.state() == RankRecord::STATE_READY;
  const v1::RankExited& exit = event.rank_exited();
  AttemptRecord& edited = ledger_->EditAttempt(event.job_id(), event.generation());
  RankRecord& rank = *edited.mutable_ranks(event.rank());
  rank.set_state(RankRecord::STATE_EXITED);
  *rank.mutable_exit() = exit;
  *rank.mutable_exit_time() = event.time();
  auto* lines = rank.mutable_exit()->mutable_last_lines();
  if (exit.finished() || exit.paused() || exit.stopped()) lines->Clear();
  if (lines->size() > kLastLines) lines->DeleteSubrange(0, lines->size() - kLastLines);
  for (std::string& line : *lines) line.resize(std::min(line.size(), kLastLineBytes));
  if (exit.step() > Find(event.job_id())->furthest_step() && (exit.finished() || exit.paused())) {
    ledger_->EditJob(event.job_id()).set_furthest_step(exit.step());
  }
  // It could not load what it was told to restore: that checkpoint is bad, the next attempt takes the one before.
  if (exit.status_code() == "DATA_LOSS" && !was_ready && !edited.restore_job_id().empty()) {
    edited.set_restore_was_bad(true);
    checkpoints_->MarkBad(
        edited.restore_job_id(), edited.restore_step(),
        absl::StrCat("rank ", event.rank(), " could not load it: ", exit.message()));
  }
}

void JobManager::OnLogLines(const std::string& node, const v1::WorkerEvent& event) {
  if (Find(event.job_id()) == nullptr) return;
  const v1::LogLines& lines = event.log_lines();
  v1::LogChunk chunk;
  chunk.set_attempt(event.generation());
  chunk.set_rank(event.rank());
  chunk.set_node(node);
  *chunk.mutable_time() = event.time();
  chunk.set_data(lines.data());
  chunk.set_is_stderr(lines.is_stderr());
  // The daemon's own remarks ("[mt: 9 lines came too fast ...") are not in the rank's file and have no place there.
  const bool remark = absl::StartsWith(lines.data(), "[mt: ");
  const int64_t end = remark ? -1 : lines.offset() + static_cast<int64_t>(lines.data().size());
  const auto stored = options_.logs->Append(event.job_id(), std::move(chunk), end);
  // The lines are still in the rank's own file on its node; the job must not wait for our disk.
  if (!stored.ok() && log_complaints_.insert(event.job_id()).second) {
    ledger_->AddEvent("logs_lost", event.job_id(), node, event.generation(),
                      absl::StrCat("log lines could not be stored: ", stored.status().message()));
  } else if (stored.ok() && log_complaints_.erase(event.job_id()) > 0) {
    ledger_->AddEvent("logs_stored_again", event.job_id(), node, event.generation(),
                      "log lines are stored again; those that came meanwhile are only in the "
                      "nodes' own logs");
  }
}

void JobManager::OnRendezvousPut(const std::string& node, const v1::RendezvousPut& put) {
  const AttemptRecord* attempt = Attempt(put.job_id());
  if (attempt == nullptr || attempt->generation() != put.generation() || attempt->has_ended()) {
    ++stale_events_;
    return;
  }
  for (const std::string& waiting :
       rendezvous_.Put(put.job_id(), put.generation(), put.key(), put.value())) {
    OnRendezvousGet(waiting, [&] {
      v1::RendezvousGet get;
      get.set_job_id(put.job_id());
      get.set_generation(put.generation());
      get.set_key(put.key());
      return get;
    }());
  }
}

void JobManager::OnRendezvousGet(const std::string& node, const v1::RendezvousGet& get) {
  const AttemptRecord* attempt = Attempt(get.job_id());
  if (attempt == nullptr || attempt->generation() != get.generation() || attempt->has_ended()) {
    ++stale_events_;
    return;
  }
  const std::string* value = rendezvous_.Get(get.job_id(), get.generation(), get.key(), node);
  if (value == nullptr) return;
  v1::CoordinatorMessage message;
  v1::RendezvousValue& answer = *message.mutable_rendezvous_value();
  answer.set_job_id(get.job_id());
  answer.set_generation(get.generation());
  answer.set_key(get.key());
  answer.set_value(*value);
  nodes_->SendNow(node, std::move(message));
}

}  // namespace mt
