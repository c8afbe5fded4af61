#include "coordinator/jobs/job_manager.h"

#include <algorithm>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/proto_time.h"
#include "coordinator/jobs/failure.h"

namespace mt {
namespace {

using store::AttemptRecord;
using store::JobRecord;
using store::RankRecord;

bool IsOver(const RankRecord& rank) {
  return rank.state() == RankRecord::STATE_EXITED || rank.state() == RankRecord::STATE_LOST;
}

constexpr absl::Duration kAvoidFor = absl::Hours(1);

bool HasBegun(const RankRecord& rank) { return rank.state() != RankRecord::STATE_ASSIGNED; }

}  // namespace

std::set<std::string> NodesOf(const AttemptRecord& attempt) {
  std::set<std::string> nodes;
  for (const RankRecord& rank : attempt.ranks()) nodes.insert(rank.placement().node());
  return nodes;
}

bool HasEnded(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED ||
         state == v1::JOB_STATE_CANCELLED;
}

JobManager::JobManager(Options options)
    : options_(std::move(options)),
      loop_(options_.loop),
      ledger_(options_.ledger),
      nodes_(options_.nodes),
      checkpoints_(options_.checkpoints) {
  checkpoints_->SetOnChange([this](const std::string& job_id) { Touch(job_id); });
  for (const auto& [id, job] : ledger_->state().jobs) by_request_[job.job().request_id()] = id;
}

void JobManager::Start() {
  const absl::Duration now = loop_->clock()->Monotonic();
  std::vector<std::string> resumed;
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (job.resume_at_start()) resumed.push_back(id);
    if (!HasEnded(job.job().state())) last_progress_[id] = now;
  }
  for (const std::string& id : resumed) {
    JobRecord& job = ledger_->EditJob(id);
    job.set_resume_at_start(false);
    job.set_wish(store::WISH_RUN);
    if (job.job().state() == v1::JOB_STATE_PAUSED)
      SetReason(id, v1::JOB_STATE_QUEUED, "resumed after a restart of the cluster");
  }
  TouchAll();
}

void JobManager::TouchAll() {
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (!HasEnded(job.job().state())) touched_.insert(id);
  }
  schedule_ = true;
}

const JobRecord* JobManager::Find(const std::string& job_id) const {
  const auto it = ledger_->state().jobs.find(job_id);
  return it == ledger_->state().jobs.end() ? nullptr : &it->second;
}

const AttemptRecord* JobManager::Attempt(const std::string& job_id) const {
  const JobRecord* job = Find(job_id);
  if (job == nullptr || job->job().attempt() == 0) return nullptr;
  const auto it = ledger_->state().attempts.find({job_id, job->job().attempt()});
  return it == ledger_->state().attempts.end() ? nullptr : &it->second;
}

void JobManager::SetReason(const std::string& job_id, v1::JobState state,
                           const std::string& reason) {
  const v1::Job& job = Find(job_id)->job();
  if (job.state() == state && job.reason() == reason) return;
  v1::Job& edited = *ledger_->EditJob(job_id).mutable_job();
  edited.set_state(state);
  edited.set_reason(reason);
}

void JobManager::Settle() {
  if (settling_) return;
  settling_ = true;
  checkpoints_->Settle();
  while (!touched_.empty() || schedule_) {
    while (!touched_.empty()) {
      const std::string id = *touched_.begin();
      touched_.erase(touched_.begin());
      Reconcile(id);
    }
    if (std::exchange(schedule_, false)) Schedule();
  }
  settling_ = false;
}

void JobManager::Reconcile(const std::string& job_id) {
  const JobRecord* job = Find(job_id);
  if (job == nullptr || HasEnded(job->job().state()) || job->job().state() == v1::JOB_STATE_PAUSED)
    return;
  if (job->job().state() == v1::JOB_STATE_QUEUED) {
    schedule_ = true;
    return;
  }
  const AttemptRecord* attempt = Attempt(job_id);
  if (attempt == nullptr) return;
  if (!attempt->has_ended()) WatchAttempt(*job, *attempt);
  if (attempt->has_ended()) Judge(*job, *attempt);
}

// The attempt runs or is being stopped.
void JobManager::WatchAttempt(const JobRecord& job, const AttemptRecord& attempt) {
  const std::string& id = job.job().id();
  if (!attempt.failed() && !attempt.stopping() && !attempt.data_agreed()) CompareData(attempt);
  if (!attempt.failed()) {
    const auto failed = std::find_if(attempt.ranks().begin(), attempt.ranks().end(), IsFailure);
    if (failed != attempt.ranks().end() && !attempt.stopping()) {
      const std::string how = DescribeEnd(*failed);
      ledger_->EditAttempt(id, attempt.generation()).set_failed(true);
      ledger_->AddEvent("rank_failed", id, failed->placement().node(), attempt.generation(), how);
      failed_at_.try_emplace(id, loop_->clock()->Monotonic());
      ++metrics_[id].failures_by_cause[CauseOf(*failed)];
      BeginStop(id, how);
    }
  }
  if (job.wish() == store::WISH_CANCEL && !attempt.stopping()) BeginStop(id, "cancelled");
  if (!attempt.stopping() && (job.wish() == store::WISH_PAUSE || MustMove(attempt))) {
    const bool may_run = attempt.data_agreed() || attempt.stepped() ||
                         std::any_of(attempt.ranks().begin(), attempt.ranks().end(), HasBegun);
    if (may_run) {
      AskForCheckpoint(attempt);
    } else {  // there is nobody who could write one
      BeginStop(id, job.wish() == store::WISH_PAUSE ? "paused before its ranks started"
                                                    : "leaves a node that is drained");
    }
  }
  if (job.wish() == store::WISH_RUN && job.job().state() == v1::JOB_STATE_PAUSING &&
      !attempt.stopping()) {
    SetReason(id, v1::JOB_STATE_RECOVERING, "resumed while pausing: goes on after its checkpoint");
  }
  GiveUpLostRanks(job, attempt);
  if (std::all_of(attempt.ranks().begin(), attempt.ranks().end(), IsOver))
    EndAttempt(id, attempt.generation());
}

// Ranks whose node is down: dead or cut off, nobody knows. See the header for when they are given up.
void JobManager::GiveUpLostRanks(const JobRecord& job, const AttemptRecord& attempt) {
  std::vector<int> given_up;
  bool all_down = true;
  for (int i = 0; i < attempt.ranks_size(); ++i) {
    const RankRecord& rank = attempt.ranks(i);
    if (IsOver(rank)) continue;
    if (nodes_->IsDown(rank.placement().node())) {
      given_up.push_back(i);
    } else {
      all_down = false;
    }
  }
  if (given_up.empty()) return;
  const std::string& id = job.job().id();
  const bool ending = attempt.failed() || attempt.stopping();
  if (!ending) {
    const auto progress = ledger_->state().progress.find(id);
    const double step_seconds =
        progress == ledger_->state().progress.end() ? 0 : progress->second.step_seconds();
    const absl::Duration patience = std::max(options_.down_after, 2 * absl::Seconds(step_seconds));
    if (loop_->clock()->Monotonic() - last_progress_[id] < patience)
      return;  // somebody still sees it advance
  }
  if (!nodes_->MayGiveUp() && (all_down || !ending)) {
    SetReason(id, job.job().state(),
              absl::StrCat(
                  "the coordinator reaches ", nodes_->NumReady(), " of ", nodes_->names().size(),
                  " nodes and may be cut off itself (or was): it waits before it gives ranks up"));
    return;
  }
  for (const int i : given_up) {
    RankRecord& rank = *ledger_->EditAttempt(id, attempt.generation()).mutable_ranks(i);
    rank.set_state(RankRecord::STATE_LOST);
    SetTime(rank.mutable_exit_time(), loop_->clock()->Now());
    ledger_->AddEvent("rank_lost", id, rank.placement().node(), attempt.generation(),
                      absl::StrCat("rank ", i, " was given up: its node is down"));
  }
  Touch(id);
}

bool JobManager::MustMove(const AttemptRecord& attempt) const {
  return std::any_of(attempt.ranks().begin(), attempt.ranks().end(), [&](const RankRecord& rank) {
    const auto node = ledger_->state().nodes.find(rank.placement().node());
    return node != ledger_->state().nodes.end() && node->second.draining() &&
           node->second.drain_stops_jobs();
  });
}

void JobManager::BeginStop(const std::string& job_id, const std::string& reason) {
  const JobRecord& job = *Find(job_id);
  AttemptRecord& attempt = ledger_->EditAttempt(job_id, job.job().attempt());
  attempt.set_stopping(true);
  attempt.set_stop_reason(reason);
  const v1::JobState state = job.wish() == store::WISH_CANCEL  ? v1::JOB_STATE_CANCELLING
                             : job.wish() == store::WISH_PAUSE ? v1::JOB_STATE_PAUSING
                                                               : v1::JOB_STATE_RECOVERING;
  SetReason(job_id, state, reason);
  for (const std::string& node : NodesOf(attempt)) SendStop(attempt, node);
}

void JobManager::SendStop(const AttemptRecord& attempt, const std::string& node) {
  v1::CoordinatorMessage message;
  v1::StopRanks& stop = *message.mutable_stop_ranks();
  stop.set_job_id(attempt.job_id());
  stop.set_generation(attempt.generation());
  *stop.mutable_grace() = Find(attempt.job_id())->job().spec().fault().stop_grace();
  stop.set_reason(attempt.stop_reason());
  // The answer comes behind every RankStarted of this stream: what has not started then never will.
  nodes_->Send(
      node, std::move(message),
      [this, id = attempt.job_id(), generation = attempt.generation(), node](absl::Status) {
        const auto it = ledger_->state().attempts.find({id, generation});
        if (it == ledger_->state().attempts.end() || it->second.has_ended()) return;
        for (int i = 0; i < it->second.ranks_size(); ++i) {
          const RankRecord& rank = it->second.ranks(i);
          if (rank.placement().node() != node || rank.state() != RankRecord::STATE_ASSIGNED)
            continue;
          RankRecord& edited = *ledger_->EditAttempt(id, generation).mutable_ranks(i);
          edited.set_state(RankRecord::STATE_EXITED);
          edited.mutable_exit()->set_stopped(true);
          edited.mutable_exit()->set_message("stopped before it started");
        }
        Touch(id);
      });
}

void JobManager::SendStart(const AttemptRecord& attempt, const std::string& node) {
  const JobRecord& job = *Find(attempt.job_id());
  v1::CoordinatorMessage message;
  v1::StartRanks& start = *message.mutable_start_ranks();
  start.set_job_id(attempt.job_id());
  start.set_generation(attempt.generation());
  *start.mutable_spec() = job.job().spec();
  for (const RankRecord& rank : attempt.ranks()) {
    v1::RankSlot& slot = *start.add_rank_table();
    slot.set_rank(rank.placement().rank());
    slot.set_node(rank.placement().node());
    slot.set_slot(rank.placement().slot());
    slot.set_data_address(rank.placement().address());
  }
  start.set_parent_step(-1);
  if (!attempt.restore_job_id().empty()) {
    if (const auto* checkpoint =
            checkpoints_->Find(attempt.restore_job_id(), attempt.restore_step())) {
      *start.mutable_restore() = checkpoint->manifest();
      start.set_parent_step(attempt.restore_step());
      if (auto sources = checkpoints_->Sources(*checkpoint); sources.ok()) {
        for (v1::FileSource& source : *sources) *start.add_sources() = std::move(source);
      }
    }
  }
  AddDatasets(attempt, node, start);
  // What was asked of the node before, its ranks that come now have not heard.
  asked_to_pause_.erase({attempt.job_id(), attempt.generation(), node});
  nodes_->Send(
      node, std::move(message),
      [this, id = attempt.job_id(), generation = attempt.generation(), node](absl::Status status) {
        const AttemptRecord* attempt = Attempt(id);
        if (status.ok() || attempt == nullptr || attempt->generation() != generation ||
            attempt->has_ended())
          return;
        for (int i = 0; i < attempt->ranks_size(); ++i) {
          const RankRecord& rank = attempt->ranks(i);
          if (rank.placement().node() != node || rank.state() != RankRecord::STATE_ASSIGNED)
            continue;
          RankRecord& edited = *ledger_->EditAttempt(id, generation).mutable_ranks(i);
          edited.set_state(RankRecord::STATE_EXITED);
          edited.mutable_exit()->set_exit_code(1);
          edited.mutable_exit()->set_cause("start");
          edited.mutable_exit()->set_status_code(absl::StatusCodeToString(status.code()));
          edited.mutable_exit()->set_message(
              absl::StrCat("the node did not start it: ", status.message()));
          SetTime(edited.mutable_exit_time(), loop_->clock()->Now());
        }
        Touch(id);
      });
}

void JobManager::AskForCheckpoint(const AttemptRecord& attempt) {
  const JobRecord& job = *Find(attempt.job_id());
  const bool pausing = job.wish() == store::WISH_PAUSE;
  SetReason(attempt.job_id(), pausing ? v1::JOB_STATE_PAUSING : v1::JOB_STATE_RECOVERING,
            pausing ? "writing a checkpoint, then it pauses"
                    : "writing a checkpoint, then it leaves a node that is drained");
  for (const std::string& node : NodesOf(attempt)) {
    if (!nodes_->IsConnected(node) ||
        !asked_to_pause_.emplace(attempt.job_id(), attempt.generation(), node).second)
      continue;
    v1::CoordinatorMessage message;
    message.mutable_checkpoint_now()->set_job_id(attempt.job_id());
    message.mutable_checkpoint_now()->set_generation(attempt.generation());
    message.mutable_checkpoint_now()->set_then_stop(true);
    nodes_->Send(node, std::move(message));
  }
}

void JobManager::EndAttempt(const std::string& job_id, int generation) {
  AttemptRecord& attempt = ledger_->EditAttempt(job_id, generation);
  SetTime(attempt.mutable_ended(), loop_->clock()->Now());
  const JobRecord& job = *Find(job_id);
  if (!attempt.failed() && !attempt.stopping() && job.wish() != store::WISH_CANCEL &&
      std::any_of(attempt.ranks().begin(), attempt.ranks().end(), IsFailure)) {
    attempt.set_failed(true);
  }
  if (attempt.failed()) *attempt.mutable_failure() = NameCulprit(attempt);
  // The culprit's last lines are in the failure now. The others' are in the log, and attempts stay in memory.
  for (RankRecord& rank : *attempt.mutable_ranks()) {
    if (rank.has_exit()) rank.mutable_exit()->clear_last_lines();
  }
  ledger_->AddEvent("attempt_ended", job_id, "", generation,
                    attempt.failed() ? attempt.failure().message() : "all ranks have ended");
  std::erase_if(asked_to_pause_, [&](const auto& entry) { return std::get<0>(entry) == job_id; });
  rendezvous_.Drop(job_id, generation + 1);
  checkpoints_->OnAttemptEnded(job_id);
}

// The attempt is over; its complete checkpoints may still be on their way. What comes next?
void JobManager::Judge(const JobRecord& job, const AttemptRecord& attempt) {
  const std::string id = job.job().id();
  const int generation = attempt.generation();
  if (job.wish() == store::WISH_CANCEL) {
    End(id, v1::JOB_STATE_CANCELLED, kExitInterrupted,
        job.reason_by_user().empty() ? "cancelled" : job.reason_by_user());
    return;
  }
  if (const std::string open = checkpoints_->UnresolvedReason(id); !open.empty()) {
    SetReason(id, job.job().state(), open);
    return;
  }
  // All there is to do is done and safe, also when a rank died on its way out.
  if (job.job().last_checkpoint_step() >= job.job().spec().training().steps()) {
    End(id, v1::JOB_STATE_SUCCEEDED, kExitOk, "");
    return;
  }
  const bool all_finished =
      std::all_of(attempt.ranks().begin(), attempt.ranks().end(),
                  [](const RankRecord& rank) { return rank.exit().finished(); });
  if (!attempt.failed() && all_finished) {
    AttemptRecord& edited = ledger_->EditAttempt(id, generation);
    edited.set_failed(true);
    edited.mutable_failure()->set_attempt(generation);
    edited.mutable_failure()->set_rank(-1);
    edited.mutable_failure()->set_cause("checkpoint");
    edited.mutable_failure()->set_message(
        "all steps are done, but the last checkpoint could not be committed");
  }
  if (!attempt.judged()) {
    JobRecord& edited = ledger_->EditJob(id);
    ledger_->EditAttempt(id, generation).set_judged(true);
    if (attempt.failed()) {
      *edited.mutable_job()->mutable_failure() = attempt.failure();
      edited.set_failures(edited.failures() + 1);
      // A step that no earlier attempt had done, or a newer checkpoint, is progress.
      const bool progressed = edited.furthest_step() > attempt.furthest_at_start() ||
                              edited.job().last_checkpoint_step() > attempt.committed_at_start();
      if (progressed) {
        edited.mutable_job()->set_attempts_without_progress(0);
      } else if (!attempt.restore_was_bad() && !attempt.failure().cause().empty()) {
        // Not counted: a checkpoint that could not be read (the one before is next), ends that no rank is to blame for, and a
        // node that refused to start its ranks: nothing of the job was tried.
        if (attempt.failure().cause() != "start") {
          edited.mutable_job()->set_attempts_without_progress(
              edited.job().attempts_without_progress() + 1);
        }
        AvoidCulprit(id, attempt.failure());
      }
    }
  }
  // Another attempt would read the same files.
  if (attempt.failed() && attempt.failure().cause() == "data") {
    End(id, v1::JOB_STATE_FAILED, kExitPrecondition, attempt.failure().message());
    return;
  }
  const int limit = std::max(1, job.job().spec().fault().max_attempts_without_progress());
  if (attempt.failed() && job.job().attempts_without_progress() >= limit) {
    End(id, v1::JOB_STATE_FAILED, kExitNoProgress,
        absl::StrCat(limit, " attempts without progress; the last: ", attempt.failure().message()));
    return;
  }
  if (job.wish() == store::WISH_PAUSE) {
    SetReason(id, v1::JOB_STATE_PAUSED,
              attempt.failed()
                  ? absl::StrCat("it failed while pausing: ", attempt.failure().message())
              : job.reason_by_user().empty()
                  ? absl::StrCat("at step ", std::max<int64_t>(0, job.job().last_checkpoint_step()))
                  : job.reason_by_user());
    ledger_->AddEvent("job_paused", id, "", generation,
                      absl::StrCat("at checkpoint step ", job.job().last_checkpoint_step()));
    schedule_ = true;
    return;
  }
  if (PauseIfAllCheckpointsAreBad(id)) return;
  if (const absl::Duration wait = RetryWait(job, attempt); wait > absl::ZeroDuration()) {
    const int64_t seconds = absl::ToInt64Seconds(absl::Ceil(wait, absl::Seconds(1)));
    SetReason(id, v1::JOB_STATE_RECOVERING,
              absl::StrCat("next attempt in ", seconds, " s: ", attempt.failure().message()));
    return;
  }
  SetReason(id, v1::JOB_STATE_RECOVERING, job.job().reason());
  if (const absl::Status wait = TryStart(id); !wait.ok())
    SetReason(id, v1::JOB_STATE_RECOVERING, std::string(wait.message()));
}

// A node can be broken in a way that only its ranks see (a dead device): the next attempts do without it if there is room.
void JobManager::AvoidCulprit(const std::string& job_id, const v1::FailureReport& failure) {
  if (failure.rank() < 0 || failure.node().empty()) return;
  const bool known = Avoids(job_id, failure.node());
  avoided_[{job_id, failure.node()}] = loop_->clock()->Monotonic() + kAvoidFor;
  if (known) return;
  ledger_->AddEvent("node_avoided", job_id, failure.node(), failure.attempt(),
                    absl::StrCat("for an hour this job uses ", failure.node(),
                                 " only if it fits nowhere else: ", failure.message()));
}

absl::Duration JobManager::RetryWait(const JobRecord& job, const AttemptRecord& attempt) {
  const bool refused =
      attempt.failure().cause() == "start";  // not counted, and not repeated at once
  const int fruitless = job.job().attempts_without_progress();
  if (!attempt.failed() || (fruitless == 0 && !refused) || options_.retry_waits.empty())
    return absl::ZeroDuration();
  const absl::Duration now = loop_->clock()->Monotonic();
  Retry& retry = retries_[job.job().id()];
  if (retry.generation != attempt.generation()) {
    // The first restart is at once: of a job that has never come far it follows an attempt without progress.
    const bool ever = job.furthest_step() > 0 || job.job().last_checkpoint_step() >= 0;
    const int refusals = refused ? retry.refusals + 1 : 0;
    const int restarts = std::max(fruitless - (ever ? 0 : 1), refusals);
    const size_t which = std::min<size_t>(restarts, options_.retry_waits.size() - 1);
    retry = {attempt.generation(), now + options_.retry_waits[which], refusals};
  }
  return retry.until - now;
}

void JobManager::End(const std::string& job_id, v1::JobState state, int exit_code,
                     const std::string& reason) {
  JobRecord& record = ledger_->EditJob(job_id);
  v1::Job& job = *record.mutable_job();
  job.set_state(state);
  job.set_exit_code(exit_code);
  job.set_reason(reason);
  SetTime(job.mutable_ended(), loop_->clock()->Now());
  ledger_->AddEvent(state == v1::JOB_STATE_SUCCEEDED ? "job_succeeded"
                    : state == v1::JOB_STATE_FAILED  ? "job_failed"
                                                     : "job_cancelled",
                    job_id, "", job.attempt(), reason);
  digesting_.erase(job_id);
  retries_.erase(job_id);
  std::erase_if(avoided_, [&](const auto& entry) { return entry.first.first == job_id; });
  asked_to_pause_.erase(asked_to_pause_.lower_bound({job_id, 0, ""}),
                        asked_to_pause_.lower_bound({job_id, INT32_MAX, ""}));
  schedule_ = true;
}

std::vector<v1::RunningRank> JobManager::RanksToKeep(const std::string& node) const {
  std::vector<v1::RunningRank> keep;
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (HasEnded(job.job().state())) continue;
    const AttemptRecord* attempt = Attempt(id);
    if (attempt == nullptr || attempt->has_ended() || attempt->stopping()) continue;
    for (const RankRecord& rank : attempt->ranks()) {
      if (rank.placement().node() != node || IsOver(rank)) continue;
      v1::RunningRank& running = keep.emplace_back();
      running.set_job_id(id);
      running.set_generation(attempt->generation());
      running.set_rank(rank.placement().rank());
    }
  }
  return keep;
}

// The node's daemon has told everything that it had kept: now its list of running ranks can be compared with ours.
void JobManager::OnNodeSettled(const std::string& node,
                               const std::vector<v1::RunningRank>& running) {
  std::set<std::tuple<std::string, int, int>> alive;
  for (const v1::RunningRank& rank : running)
    alive.emplace(rank.job_id(), rank.generation(), rank.rank());
  std::erase_if(asked_to_pause_, [&](const auto& entry) { return std::get<2>(entry) == node; });
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (HasEnded(job.job().state())) continue;
    const AttemptRecord* attempt = Attempt(id);
    if (attempt == nullptr || attempt->has_ended()) continue;
    bool here = false, start = false;
    for (int i = 0; i < attempt->ranks_size(); ++i) {
      const RankRecord& rank = attempt->ranks(i);
      if (rank.placement().node() != node || IsOver(rank)) continue;
      here = true;
      const bool runs = alive.contains({id, attempt->generation(), rank.placement().rank()});
      if (rank.state() == RankRecord::STATE_ASSIGNED && !runs) {
        start = true;  // the command was lost with a stream
      } else if (rank.state() != RankRecord::STATE_ASSIGNED && !runs) {
        RankRecord& edited = *ledger_->EditAttempt(id, attempt->generation()).mutable_ranks(i);
        edited.set_state(RankRecord::STATE_LOST);
        SetTime(edited.mutable_exit_time(), loop_->clock()->Now());
      }
    }
    if (!here) continue;
    if (attempt->stopping()) {
      SendStop(*attempt, node);
    } else if (start) {
      SendStart(*attempt, node);
      if (attempt->data_agreed()) SendLaunch(*attempt, node);
    }
    Touch(id);
  }
}

void JobManager::OnNodeChanged(const std::string& node) {
  // What made attempts fail may be over: those that wait for another try do not wait on.
  for (auto& [id, retry] : retries_) {
    const AttemptRecord* attempt = Attempt(id);
    if (attempt != nullptr && NodesOf(*attempt).contains(node)) retry.until = absl::ZeroDuration();
  }
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (!HasEnded(job.job().state()) && job.job().state() != v1::JOB_STATE_QUEUED)
      touched_.insert(id);
  }
  checkpoints_->OnNodeChanged();
  schedule_ = true;
}

absl::Status JobManager::BeginShutdown(bool graceful) {
  shutting_down_ = true;
  if (!graceful) return absl::OkStatus();
  std::vector<std::string> running;
  for (const auto& [id, job] : ledger_->state().jobs) {
    const v1::JobState state = job.job().state();
    if (state == v1::JOB_STATE_STARTING || state == v1::JOB_STATE_RUNNING ||
        state == v1::JOB_STATE_RECOVERING)
      running.push_back(id);
  }
  MT_RETURN_IF_ERROR(ledger_->Try([&] {
    for (const std::string& id : running) {
      JobRecord& job = ledger_->EditJob(id);
      if (job.wish() == store::WISH_CANCEL) continue;
      job.set_wish(store::WISH_PAUSE);
      job.set_resume_at_start(true);
      job.set_reason_by_user("the cluster went down; it is resumed when the cluster comes up");
    }
  }));
  for (const std::string& id : running) Touch(id);
  Settle();
  return absl::OkStatus();
}

bool JobManager::HasActiveJobs() const {
  for (const auto& [id, job] : ledger_->state().jobs) {
    const v1::JobState state = job.job().state();
    if (HasEnded(state) || state == v1::JOB_STATE_QUEUED || state == v1::JOB_STATE_PAUSED) continue;
    const AttemptRecord* attempt = Attempt(id);
    if (attempt != nullptr && (!attempt->has_ended() || checkpoints_->HasUnresolved(id)))
      return true;
  }
  return false;
}

}  // namespace mt
