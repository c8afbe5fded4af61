#include "worker/agent/agent.h"

#include <algorithm>

#include "absl/time/time.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/proto_time.h"
#include "worker/agent/rank_frame.h"
#include "worker/checkpoint/manifest.h"

namespace mt {
namespace {

constexpr absl::Duration kHangCheckInterval = absl::Milliseconds(500);
constexpr absl::Duration kLateCheck = absl::Seconds(1);
constexpr absl::Duration kDefaultMinStepDeadline = absl::Seconds(60);
constexpr absl::Duration kDefaultStartDeadline = absl::Minutes(5);
constexpr absl::Duration kDefaultStopGrace = absl::Seconds(10);

}  // namespace

Agent::Agent(AgentOptions options, EventLoop* loop, Env* env, Random* random,
             CoordinatorDialer* dialer, RankHost* host, FileFetcher* fetcher,
             DataChecker* data_checker, DatasetProvider* datasets,
             std::function<void(absl::Status)> on_ended)
    : options_(std::move(options)),
      loop_(loop),
      env_(env),
      random_(random),
      dialer_(dialer),
      host_(host),
      fetcher_(fetcher),
      data_checker_(data_checker),
      datasets_(datasets),
      on_ended_(std::move(on_ended)),
      incarnation_(random->Id(16)) {
  host_->SetHandler(this);
}

Agent::~Agent() {
  *alive_ = false;
  for (const auto timer : {dial_timer_, heartbeat_timer_, register_timer_, hang_timer_})
    loop_->Cancel(timer);
  for (auto& [id, rank] : ranks_) loop_->Cancel(rank.kill_timer);
}

absl::Status Agent::Start() {
  MT_ASSIGN_OR_RETURN(spool_, Spool::Open(env_, JoinPath(options_.state_folder, "events.spool")));
  sent_sequence_ = 0;
  MT_RETURN_IF_ERROR(ReportLastIncarnation());
  // No rank runs and nothing is fetched yet: what has a temporary name here is left from a crash.
  if (absl::Status status = RemoveTemporaries(env_, StoreRoot("")); !status.ok()) {
    MT_LOG(Warning) << "files that were left unfinished: " << status.ToString();
  }
  MT_LOG(Info) << "node " << options_.node << ", incarnation " << incarnation_ << ", "
               << spool_->Pending().size() << " events to replay";
  hang_check_due_ = loop_->clock()->Monotonic() + kHangCheckInterval;
  hang_timer_ = loop_->After(kHangCheckInterval, [this] { OnHangTimer(); });
  Dial();
  return absl::OkStatus();
}

// The record `<state>/running.pb` is a Registered message whose `keep` names the ranks that run,
// written before they start and after they have ended; an entry with rank -1 remembers the newest
// generation of a job whose ranks this node started or refused: after a crash the one that waited
// for its data is begun anew.
absl::Status Agent::SaveRecord() {
  v1::Registered record;
  for (const auto& [job_id, job] : jobs_) {
    auto* entry = record.add_keep();
    entry->set_job_id(job_id);
    entry->set_generation(job.generation - (job.waiting_to_start ? 1 : 0));
    entry->set_rank(-1);
  }
  for (const auto& running : Running()) *record.add_keep() = running;
  return WriteFileAtomically(env_, JoinPath(options_.state_folder, "running.pb"),
                             record.SerializeAsString());
}

absl::Status Agent::ReportLastIncarnation() {
  auto contents = ReadFile(env_, JoinPath(options_.state_folder, "running.pb"));
  if (absl::IsNotFound(contents.status())) return absl::OkStatus();
  MT_RETURN_IF_ERROR(contents.status());
  v1::Registered record;
  if (!record.ParseFromString(*contents)) {
    return absl::DataLossError(absl::StrCat(
        options_.state_folder, "/running.pb is not a record of ranks; if no rank of mt runs on ",
        "this node, remove it and start again"));
  }
  std::set<RankId> reported;  // the crash may have come between the event and the record
  for (const auto& event : spool_->Pending()) {
    if (event.has_rank_exited())
      reported.insert({event.job_id(), event.generation(), event.rank()});
  }
  for (const auto& entry : record.keep()) {
    Job& job = jobs_[entry.job_id()];
    job.generation = std::max(job.generation, entry.generation());
    if (entry.rank() < 0) continue;
    const RankId id{entry.job_id(), entry.generation(), entry.rank()};
    host_->Sweep(id, entry.pid());
    if (reported.contains(id)) continue;
    v1::WorkerEvent event = NewEvent(id);
    auto* exited = event.mutable_rank_exited();
    exited->set_exit_code(-1);
    exited->set_signal(9);
    exited->set_step(entry.step());
    exited->set_status_code("ABORTED");
    exited->set_message(absl::StrCat("the worker daemon of node ", options_.node,
                                     " ended while this rank ran; the rank ended with it"));
    Emit(std::move(event));
  }
  absl::Status saved = SaveRecord();
  if (!absl::IsResourceExhausted(saved)) return saved;
  // It goes on naming ranks that have ended: the next start tells their end again, which changes nothing.
  MT_LOG(Warning) << "record of running ranks: " << saved.ToString();
  return absl::OkStatus();
}

std::vector<v1::RunningRank> Agent::Running() const {
  std::vector<v1::RunningRank> running;
  for (const auto& [id, rank] : ranks_) {
    auto& entry = running.emplace_back();
    entry.set_job_id(id.job_id);
    entry.set_generation(id.generation);
    entry.set_rank(id.rank);
    entry.set_pid(rank.pid);
    entry.set_step(rank.hang->step());
  }
  return running;
}

v1::WorkerEvent Agent::NewEvent(const RankId& id) const {
  v1::WorkerEvent event;
  event.set_job_id(id.job_id);
  event.set_generation(id.generation);
  event.set_rank(id.rank);
  return event;
}

void Agent::Emit(v1::WorkerEvent event) {
  SetTime(event.mutable_time(), loop_->clock()->Now());
  spool_->Append(std::move(event));
  SendPending();
}

void Agent::LaunchIfReady(Job& job) {
  if (!job.waiting_to_start || !job.data_checked || !job.may_launch || ending_) return;
  const bool older = std::any_of(ranks_.begin(), ranks_.end(), [&](const auto& entry) {
    return entry.first.job_id == job.start.job_id();
  });
  if (!older) Launch(job);
}

// Starts this node's ranks of the job's newest generation. The record names them before the first
// one runs, so that a crash in between reports each of them.
void Agent::Launch(Job& job) {
  job.waiting_to_start = false;
  const v1::StartRanks& start = job.start;
  const absl::Duration now = loop_->clock()->Monotonic();
  const auto& fault = start.spec().fault();
  const auto min_step = fault.has_min_step_deadline() ? ToDuration(fault.min_step_deadline())
                                                      : kDefaultMinStepDeadline;
  const auto start_deadline =
      fault.has_start_deadline() ? ToDuration(fault.start_deadline()) : kDefaultStartDeadline;
  std::vector<RankId> ids;
  for (const auto& slot : start.rank_table()) {
    if (slot.node() != options_.node) continue;
    const RankId id{start.job_id(), start.generation(), slot.rank()};
    Rank& rank = ranks_[id];
    rank.slot = slot.slot();
    rank.hang = std::make_unique<HangDetector>(min_step, start_deadline, now);
    rank.stop_grace = fault.has_stop_grace() ? ToDuration(fault.stop_grace()) : kDefaultStopGrace;
    rank.finish_grace = std::max(rank.stop_grace, min_step);
    rank.log_tokens = options_.log_burst_bytes;
    rank.log_refilled = now;
    ids.push_back(id);
  }
  absl::Status status = SaveRecord();
  const std::string log_folder =
      absl::StrCat(options_.state_folder, "/logs/", start.job_id(), "/", start.generation());
  const std::string scratch =
      absl::StrCat(options_.state_folder, "/scratch/", start.job_id(), "/", start.generation());
  const std::string sample_index = JoinPath(options_.state_folder, "sample-index");
  if (status.ok()) status = env_->CreateDirectories(log_folder);
  if (status.ok()) status = env_->CreateDirectories(scratch);
  if (status.ok()) status = env_->CreateDirectories(sample_index);
  std::string restore_file;
  if (start.restore().ByteSizeLong() > kMaxManifestInFrameBytes) {
    restore_file = JoinPath(scratch, "restore.pb");
    if (status.ok())
      status = WriteFileAtomically(env_, restore_file, start.restore().SerializeAsString());
  }
  for (const RankId& id : ids) {
    Rank& rank = ranks_[id];
    RankLaunch launch;
    launch.id = id;
    launch.log_path = absl::StrCat(log_folder, "/rank-", id.rank, ".log");
    v1::RankStart& message = launch.start;
    message.set_job_id(id.job_id);
    message.set_generation(id.generation);
    message.set_rank(id.rank);
    message.set_slot(rank.slot);
    *message.mutable_spec() = start.spec();
    *message.mutable_rank_table() = start.rank_table();
    message.set_checkpoint_root(StoreRoot(start.spec().checkpoint().path()));
    if (start.has_restore()) {
      if (restore_file.empty()) *message.mutable_restore() = start.restore();
      message.set_restore_file(restore_file);
      message.set_restore_root(StoreRoot(start.restore().spec().checkpoint().path()));
    }
    int32_t threads = start.spec().runtime().threads_per_rank();
    if (threads <= 0) threads = options_.threads_per_rank;
    if (threads <= 0)
      threads = std::max(1, options_.identity.cores() / std::max(1, options_.identity.slots()));
    message.set_threads(threads);
    message.set_scratch_directory(scratch);
    message.set_index_cache(sample_index);
    absl::StatusOr<int32_t> pid =
        status.ok() ? host_->Spawn(std::move(launch)) : absl::StatusOr<int32_t>(status);
    if (!pid.ok()) {
      v1::WorkerEvent event = NewEvent(id);
      auto* exited = event.mutable_rank_exited();
      exited->set_exit_code(127);
      exited->set_status_code(absl::StatusCodeToString(pid.status().code()));
      exited->set_message(absl::StrCat("could not be started on node ", options_.node, ": ",
                                       pid.status().message()));
      ranks_.erase(id);
      Emit(std::move(event));
      continue;
    }
    rank.pid = *pid;
    v1::WorkerEvent event = NewEvent(id);
    event.mutable_rank_started()->set_pid(*pid);
    event.mutable_rank_started()->set_slot(rank.slot);
    Emit(std::move(event));
  }
  if (absl::Status saved = SaveRecord(); !saved.ok()) {
    MT_LOG(Warning) << "record of running ranks: " << saved.ToString();
  }
  ReleaseData(start.job_id(), start.generation());  // if none could be started
}

void Agent::StopRank(const RankId& id, Rank& rank, absl::Duration grace,
                     const std::string& reason) {
  if (rank.stopped || rank.has_finished) {  // it is ending; this may only shorten the grace
    if (grace > absl::ZeroDuration()) return;
    rank.overdue = !rank.stopped;
    KillRank(id, rank);
    return;
  }
  rank.stopped = true;
  rank.stop_reason = reason;
  if (grace <= absl::ZeroDuration()) {
    KillRank(id, rank);
    return;
  }
  host_->Signal(id, RankSignal::kTerminate);
  KillAfter(id, rank, grace);
}

void Agent::KillAfter(const RankId& id, Rank& rank, absl::Duration grace) {
  rank.kill_timer = loop_->After(grace, [this, id, grace] {
    const auto it = ranks_.find(id);
    if (it == ranks_.end()) return;
    Rank& late = it->second;
    late.kill_timer = 0;
    late.overdue = !late.stopped;
    MT_LOG(Warning) << id.ToString() << " was told to end, or had said that it ends, "
                    << absl::FormatDuration(grace) << " ago: killing it";
    host_->Signal(id, RankSignal::kKill);
  });
}

// What comes later (of a SIGTERM, say, while the rank is ending) is not why it ended.
void Agent::OnFinished(const RankId& id, Rank& rank, v1::Finished finished) {
  if (rank.has_finished) return;
  rank.has_finished = true;
  rank.finished = std::move(finished);
  if (!rank.stopped) KillAfter(id, rank, rank.finished.ok() ? rank.finish_grace : rank.stop_grace);
}

void Agent::KillRank(const RankId& id, Rank& rank) {
  loop_->Cancel(rank.kill_timer);
  rank.kill_timer = 0;
  host_->Signal(id, RankSignal::kKill);
}

// A check that comes late means that this daemon stood still (stopped, starved, or a disk held it up), and not its ranks: what they
// said meanwhile waits behind this task. Their deadlines move by as much, and they are looked at when that has been heard.
void Agent::OnHangTimer() {
  const absl::Duration now = loop_->clock()->Monotonic();
  const absl::Duration late = now - hang_check_due_;
  hang_check_due_ = now + kHangCheckInterval;
  hang_timer_ = loop_->After(kHangCheckInterval, [this] { OnHangTimer(); });
  if (late <= kLateCheck) {
    CheckHangs();
    return;
  }
  MT_LOG(Warning) << "the daemon stood still for " << absl::FormatDuration(late)
                  << "; the ranks' deadlines move by as much";
  for (auto& [id, rank] : ranks_) rank.hang->Excuse(late);
  loop_->Post([this, alive = alive_] {
    if (*alive) CheckHangs();
  });
}

void Agent::CheckHangs() {
  const absl::Duration now = loop_->clock()->Monotonic();
  PardonRanksThatFetch(now);
  for (auto& [id, rank] : ranks_) {
    // Until the first step ranks wait for rendezvous values that come through the coordinator: while it is away nobody hangs.
    if (!registered_ && !rank.hang->has_stepped()) rank.hang->Pardon(now);
    if (rank.stopped || rank.hung || rank.has_finished || !rank.hang->IsHung(now)) continue;
    rank.hung = true;
    v1::WorkerEvent event = NewEvent(id);
    auto* hung = event.mutable_rank_hung();
    hung->set_phase(rank.hang->phase());
    hung->set_step(rank.hang->step());
    hung->set_where(rank.hang->where());
    SetDuration(hung->mutable_silent(), rank.hang->Silent(now));
    SetDuration(hung->mutable_deadline(), rank.hang->Deadline(now));
    MT_LOG(Warning) << id.ToString() << " hangs in phase " << rank.hang->phase() << ", step "
                    << rank.hang->step() << " (" << rank.hang->where() << "): killing it";
    Emit(std::move(event));
    KillRank(id, rank);
  }
}

void Agent::OnRankMessage(const RankId& id, v1::FromRank message) {
  const auto it = ranks_.find(id);
  if (it == ranks_.end()) return;
  Rank& rank = it->second;
  v1::WorkerEvent event = NewEvent(id);
  switch (message.body_case()) {
    case v1::FromRank::kReady:
      *event.mutable_rank_ready() = std::move(*message.mutable_ready());
      break;
    case v1::FromRank::kStepReport:
      *event.mutable_step_report() = std::move(*message.mutable_step_report());
      break;
    case v1::FromRank::kRankReport:
      *event.mutable_rank_report() = std::move(*message.mutable_rank_report());
      break;
    case v1::FromRank::kShardWritten:
      *event.mutable_shard_written() = std::move(*message.mutable_shard_written());
      break;
    case v1::FromRank::kCheckpointFailed:
      *event.mutable_checkpoint_failed() = std::move(*message.mutable_checkpoint_failed());
      break;
    case v1::FromRank::kProgress:
      rank.hang->OnProgress(message.progress(), loop_->clock()->Monotonic());
      return;
    case v1::FromRank::kNeedFile:
      NeedFile(id, message.need_file().file());
      return;
    case v1::FromRank::kRendezvousPut:
      OnRendezvousPut(id, std::move(*message.mutable_rendezvous_put()));
      return;
    case v1::FromRank::kRendezvousGet:
      OnRendezvousGet(id, message.rendezvous_get().key());
      return;
    case v1::FromRank::kFinished:
      OnFinished(id, rank, std::move(*message.mutable_finished()));
      return;
    case v1::FromRank::BODY_NOT_SET:
      return;
  }
  Emit(std::move(event));
}

void Agent::OnRankOutput(const RankId& id, std::string data, bool is_stderr, int64_t offset) {
  if (const auto it = ranks_.find(id); it != ranks_.end())
    ForwardLog(id, it->second, std::move(data), is_stderr, offset);
}

// A token bucket per rank. What is over it stays in the log file, and a line says how much.
void Agent::ForwardLog(const RankId& id, Rank& rank, std::string data, bool is_stderr,
                       int64_t offset) {
  const absl::Duration now = loop_->clock()->Monotonic();
  rank.log_tokens = std::min<double>(
      options_.log_burst_bytes, rank.log_tokens + absl::ToDoubleSeconds(now - rank.log_refilled) *
                                                      options_.log_bytes_per_second);
  rank.log_refilled = now;
  if (rank.log_tokens < static_cast<double>(data.size())) {
    rank.dropped_lines += std::max<int64_t>(1, std::count(data.begin(), data.end(), '\n'));
    rank.dropped_bytes += data.size();
    return;
  }
  rank.log_tokens -= data.size();
  if (rank.dropped_bytes > 0) FlushDrops(id, rank, offset);
  v1::WorkerEvent event = NewEvent(id);
  auto* lines = event.mutable_log_lines();
  lines->set_data(std::move(data));
  lines->set_is_stderr(is_stderr);
  lines->set_offset(offset);
  Emit(std::move(event));
}

void Agent::FlushDrops(const RankId& id, Rank& rank, int64_t offset) {
  v1::WorkerEvent event = NewEvent(id);
  auto* lines = event.mutable_log_lines();
  lines->set_data(absl::StrCat("[mt: ", rank.dropped_lines, " lines (", rank.dropped_bytes,
                               " bytes) came too fast to forward; the rank's log file on node ",
                               options_.node, " has them]\n"));
  lines->set_is_stderr(true);
  lines->set_offset(offset);
  rank.dropped_lines = rank.dropped_bytes = 0;
  Emit(std::move(event));
}

void Agent::OnRankExited(const RankId& id, RankExit exit) {
  const auto it = ranks_.find(id);
  if (it == ranks_.end()) return;
  Rank rank = std::move(it->second);
  loop_->Cancel(rank.kill_timer);
  ranks_.erase(it);
  if (rank.dropped_bytes > 0) FlushDrops(id, rank, 0);
  if (rank.overdue) {  // as it would have ended by itself
    exit.exit_code = rank.finished.ok() ? 0 : 1;
    exit.signal = 0;
  }

  v1::WorkerEvent event = NewEvent(id);
  auto* exited = event.mutable_rank_exited();
  exited->set_exit_code(exit.exit_code);
  exited->set_signal(exit.signal);
  for (auto& line : exit.last_lines) exited->add_last_lines(std::move(line));
  const bool ok =
      exit.exit_code == 0 && exit.signal == 0 && rank.has_finished && rank.finished.ok();
  exited->set_paused(ok && rank.finished.paused());
  exited->set_finished(ok && !rank.finished.paused());
  exited->set_step(rank.has_finished ? rank.finished.step() : rank.hang->step());
  exited->set_stopped(rank.stopped);
  if (rank.has_finished) {
    exited->set_status_code(rank.finished.status_code());
    exited->set_message(rank.finished.message());
    exited->set_blame_rank(rank.finished.blame_rank());
  } else if (rank.hung) {
    exited->set_status_code("DEADLINE_EXCEEDED");
    exited->set_message(absl::StrCat("hung in phase ", rank.hang->phase(), ", step ",
                                     rank.hang->step(), " (", rank.hang->where(), ")"));
  } else if (rank.stopped) {
    exited->set_status_code("CANCELLED");
    exited->set_message(rank.stop_reason);
  } else if (exit.signal != 0) {
    exited->set_status_code("UNAVAILABLE");
    exited->set_message(absl::StrCat("ended by signal ", exit.signal, " in phase ",
                                     rank.hang->phase(), ", step ", rank.hang->step()));
  } else {
    exited->set_status_code("INTERNAL");
    exited->set_message(absl::StrCat("exited with code ", exit.exit_code,
                                     " without a word in phase ", rank.hang->phase()));
  }
  Emit(std::move(event));
  if (absl::Status saved = SaveRecord(); !saved.ok()) {
    MT_LOG(Warning) << "record of running ranks: " << saved.ToString();
  }

  ReleaseData(id.job_id, id.generation);
  Job& job = jobs_[id.job_id];
  const bool any_left = std::any_of(ranks_.begin(), ranks_.end(), [&](const auto& entry) {
    return entry.first.job_id == id.job_id;
  });
  if (!any_left) {
    (void)env_->RemoveTree(
        absl::StrCat(options_.state_folder, "/scratch/", id.job_id, "/", id.generation));
    if (job.waiting_to_start) {
      LaunchIfReady(job);
    } else {
      job.start.Clear();  // it may hold a large manifest, and only running ranks ask for it
      job.puts.clear();
      job.gets.clear();
    }
  }
  EndIfDone();
}

void Agent::Shutdown(absl::Duration grace, const std::string& reason) {
  ending_ = true;
  for (auto& [job_id, job] : jobs_) ReleaseData(job_id, job.generation);
  for (auto& [id, rank] : ranks_) StopRank(id, rank, grace, reason);
  EndIfDone();
}

void Agent::EndIfDone() {
  if ((!ending_ && !refused_) || ended_ || !ranks_.empty()) return;
  if (!ending_) {
    MT_LOG(Error) << "the coordinator does not take this daemon: " << end_status_.message()
                  << "; no rank runs here: ending, so that another daemon can be started";
  }
  ending_ = ended_ = true;
  loop_->Cancel(dial_timer_);
  // The last events are on their way; what the coordinator does not get now, the spool tells it at
  // the next start.
  loop_->Post([this, alive = alive_] {
    if (*alive && on_ended_) on_ended_(end_status_);
  });
}

}  // namespace mt
