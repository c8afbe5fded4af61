// What the coordinator can ask of a node. Every command is idempotent.
#include <algorithm>

#include "absl/strings/str_join.h"
#include "common/log.h"
#include "common/proto_time.h"
#include "worker/agent/agent.h"
#include "worker/checkpoint/manifest.h"

namespace mt {
namespace {

absl::Status Stale(const std::string& job_id, int32_t generation, int32_t newest) {
  return absl::AbortedError(absl::StrCat("generation ", generation, " of job ", job_id,
                                         " is stale: this node has seen ", newest));
}

}  // namespace

absl::Status Agent::StartRanks(v1::StartRanks start) {
  if (ending_) return absl::UnavailableError("the worker daemon is ending");
  MT_RETURN_IF_ERROR(ValidateComponent("job id", start.job_id()));
  const std::string job_id = start.job_id();
  Job& job = jobs_[job_id];
  if (start.generation() < job.generation) return Stale(job_id, start.generation(), job.generation);
  if (start.generation() == job.generation)
    return absl::OkStatus();  // a repetition: each rank starts at most once
  std::set<int32_t> slots;
  for (const auto& rank : start.rank_table()) {
    if (rank.node() != options_.node) continue;
    if (rank.slot() < 0 || rank.slot() >= options_.identity.slots() ||
        !slots.insert(rank.slot()).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", rank.rank(), " was given slot ", rank.slot(), " of node ", options_.node,
          ", which has ", options_.identity.slots(), " slots, one rank each"));
    }
  }
  for (const auto& [id, rank] : ranks_) {
    if (id.job_id != job_id && slots.contains(rank.slot)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "slot ", rank.slot, " of node ", options_.node, " is still held by ", id.ToString()));
    }
  }
  const int32_t before = std::exchange(job.generation, start.generation());
  job.start = std::move(start);
  job.puts.clear();
  job.gets.clear();
  job.waiting_to_start = true;
  job.data_checked = job.may_launch = false;
  ReleaseData(job_id, before);
  for (auto& [id, rank] : ranks_) {
    if (id.job_id != job_id) continue;
    StopRank(id, rank, absl::ZeroDuration(), "a newer generation of the job starts");
  }
  PrepareData(job);
  return absl::OkStatus();
}

absl::Status Agent::StopRanks(const v1::StopRanks& stop) {
  MT_RETURN_IF_ERROR(ValidateComponent("job id", stop.job_id()));
  Job& job = jobs_[stop.job_id()];
  if (stop.generation() < job.generation)
    return Stale(stop.job_id(), stop.generation(), job.generation);
  job.waiting_to_start = false;  // what has not started by now never will
  ReleaseData(stop.job_id(), job.generation);
  if (stop.at_step_boundary()) {
    v1::CheckpointNow command;
    command.set_job_id(stop.job_id());
    command.set_generation(stop.generation());
    command.set_then_stop(true);
    return CheckpointNow(command);
  }
  // A repeated StartRanks of this generation does nothing from now on.
  if (job.generation < stop.generation()) {
    job.generation = stop.generation();
    MT_RETURN_IF_ERROR(SaveRecord());
  }
  for (auto& [id, rank] : ranks_) {
    if (id.job_id != stop.job_id()) continue;
    const absl::Duration grace = stop.has_grace() ? ToDuration(stop.grace()) : rank.stop_grace;
    StopRank(id, rank, grace, stop.reason());
  }
  return absl::OkStatus();
}

absl::Status Agent::CheckpointNow(const v1::CheckpointNow& command) {
  const auto found = jobs_.find(command.job_id());
  if (found != jobs_.end() && command.generation() < found->second.generation) {
    return Stale(command.job_id(), command.generation(), found->second.generation);
  }
  for (const auto& [id, rank] : ranks_) {
    if (id.job_id != command.job_id() || id.generation != command.generation()) continue;
    v1::ToRank message;
    *message.mutable_checkpoint_now() = command;
    host_->Send(id, std::move(message));
  }
  return absl::OkStatus();
}

// The daemon's server reads the files again when they change, and every dial reads them: nothing is restarted for it.
absl::Status Agent::RenewCertificate(const v1::RenewCertificate& next) {
  if (!options_.renew_certificate) {
    return absl::FailedPreconditionError(
        absl::StrCat("the daemon of node ", options_.node, " runs without TLS"));
  }
  MT_RETURN_IF_ERROR(options_.renew_certificate(next));
  MT_LOG(Info) << "the certificate is renewed";
  return absl::OkStatus();
}

absl::Status Agent::CommitManifest(const v1::CommitManifest& commit) {
  MT_RETURN_IF_ERROR(ValidateComponent("job id", commit.job_id()));
  const absl::Status status = mt::CommitManifest(env_, StoreRoot(commit.path()), commit.manifest());
  v1::WorkerEvent event = NewEvent({commit.job_id(), 0, -1});
  if (const auto job = jobs_.find(commit.job_id()); job != jobs_.end())
    event.set_generation(job->second.generation);
  auto* committed = event.mutable_manifest_committed();
  committed->set_step(commit.step());
  committed->set_ok(status.ok());
  if (!status.ok()) {
    committed->set_message(status.ToString());
    committed->set_reason(CheckpointFailureReason(status));
  }
  Emit(std::move(event));
  return status;
}

absl::Status Agent::DeleteCheckpoint(const v1::DeleteCheckpoint& command) {
  return mt::DeleteCheckpoint(env_, StoreRoot(command.path()), command.job_id(), command.step());
}

// One transfer per destination, however many ask for it.
void Agent::FetchOnce(FetchRequest request, const RankId* rank,
                      std::function<void(absl::Status)> done) {
  FileTransfer& transfer = fetches_[request.destination];
  transfer.waiting.push_back(std::move(done));
  if (rank != nullptr) transfer.ranks.insert(*rank);
  if (transfer.waiting.size() > 1) return;
  request.moved = transfer.moved;
  fetcher_->Fetch(request,
                  [this, alive = alive_, destination = request.destination](absl::Status status) {
                    if (!*alive) return;
                    const auto transfer = fetches_.extract(destination);
                    for (const auto& callback : transfer.mapped().waiting) callback(status);
                  });
}

// Who waits for a file does not hang as long as bytes come: of any file, for a transfer may be waiting for the others.
void Agent::PardonRanksThatFetch(absl::Duration now) {
  bool moves = false;
  for (auto& [destination, transfer] : fetches_) {
    const int64_t moved = transfer.moved->load(std::memory_order_relaxed);
    if (std::exchange(transfer.seen, moved) != moved) moves = true;
  }
  if (!moves) return;
  for (const auto& [destination, transfer] : fetches_) {
    for (const RankId& id : transfer.ranks) {
      if (const auto rank = ranks_.find(id); rank != ranks_.end()) rank->second.hang->Pardon(now);
    }
  }
}

absl::Status Agent::FetchFiles(const v1::FetchFiles& fetch, const std::string& command_id) {
  MT_RETURN_IF_ERROR(ValidateComponent("job id", fetch.job_id()));
  MT_ASSIGN_OR_RETURN(const std::string folder,
                      CheckpointFolder(StoreRoot(""), fetch.job_id(), fetch.step()));
  MT_RETURN_IF_ERROR(env_->CreateDirectories(folder));
  for (const auto& file : fetch.files()) {
    MT_RETURN_IF_ERROR(ValidateComponent("checkpoint file", file.name()));
    FetchRequest request{fetch.job_id(), fetch.step(), file, {}, JoinPath(folder, file.name())};
    for (const auto& source : fetch.sources()) {
      if (source.file() != file.name()) continue;
      request.endpoints.assign(source.endpoints().begin(), source.endpoints().end());
      if (!source.job_id().empty()) {
        request.job_id = source.job_id();
        request.step = source.step();
      }
    }
    auto report = [this, job_id = fetch.job_id(), step = fetch.step(), name = file.name(),
                   command_id](absl::Status status) {
      v1::WorkerEvent event = NewEvent({job_id, 0, -1});
      if (const auto job = jobs_.find(job_id); job != jobs_.end())
        event.set_generation(job->second.generation);
      auto* fetched = event.mutable_file_fetched();
      fetched->set_step(step);
      fetched->set_file(name);
      fetched->set_ok(status.ok());
      fetched->set_message(status.ok() ? "" : status.ToString());
      fetched->set_command_id(command_id);
      Emit(std::move(event));
    };
    FetchOnce(std::move(request), nullptr, std::move(report));
  }
  return absl::OkStatus();
}

// A rank looked for a file of the checkpoint that it restores, and this node does not have it (or
// has a damaged copy).
void Agent::NeedFile(const RankId& id, const std::string& name) {
  auto answer = [this, id, name](absl::Status status, const std::string& path) {
    v1::ToRank message;
    auto* ready = message.mutable_file_ready();
    ready->set_file(name);
    ready->set_ok(status.ok());
    ready->set_path(path);
    ready->set_message(status.ok() ? "" : std::string(status.message()));
    ready->set_code(static_cast<int32_t>(status.code()));
    host_->Send(id, std::move(message));
  };
  const auto job = jobs_.find(id.job_id);
  if (job == jobs_.end() || job->second.generation != id.generation) return;
  const v1::StartRanks& start = job->second.start;
  const auto& files = start.restore().files();
  const auto file = std::find_if(files.begin(), files.end(),
                                 [&](const auto& entry) { return entry.name() == name; });
  if (absl::Status status = ValidateComponent("checkpoint file", name);
      file == files.end() || !status.ok()) {
    answer(absl::NotFoundError(
               absl::StrCat("the checkpoint that this job restores has no file ", name)),
           "");
    return;
  }
  FetchRequest request{start.restore().job_id(), start.restore().step(), *file, {}, ""};
  std::string unreachable;
  for (const auto& source : start.sources()) {
    if (source.file() != name) continue;
    request.endpoints.assign(source.endpoints().begin(), source.endpoints().end());
    if (!source.job_id().empty()) {
      request.job_id = source.job_id();
      request.step = source.step();
    }
    unreachable = absl::StrJoin(source.unreachable_nodes(), ", ");
  }
  const auto folder =
      CheckpointFolder(StoreRoot(""), start.restore().job_id(), start.restore().step());
  if (absl::Status status = folder.ok() ? env_->CreateDirectories(*folder) : folder.status();
      !status.ok()) {
    answer(status, "");
    return;
  }
  request.destination = JoinPath(*folder, name);
  const std::string path = request.destination;
  FetchOnce(std::move(request), &id, [answer, path, unreachable](absl::Status status) {
    if (absl::IsDataLoss(status) && !unreachable.empty()) {
      status = absl::UnavailableError(
          absl::StrCat(status.message(), "; not asked, for they are not connected: ", unreachable));
    }
    answer(status, path);
  });
}

void Agent::OnRendezvousPut(const RankId& id, v1::RendezvousPut put) {
  Job& job = jobs_[id.job_id];
  if (job.generation != id.generation) return;
  put.set_job_id(id.job_id);
  put.set_generation(id.generation);
  job.puts[put.key()] = put.value();
  v1::RendezvousValue value;
  value.set_job_id(id.job_id);
  value.set_generation(id.generation);
  value.set_key(put.key());
  value.set_value(put.value());
  if (registered_) {
    v1::WorkerMessage message;
    *message.mutable_rendezvous_put() = std::move(put);
    Send(std::move(message));
  }
  OnRendezvousValue(value);
}

void Agent::OnRendezvousGet(const RankId& id, const std::string& key) {
  Job& job = jobs_[id.job_id];
  if (job.generation != id.generation) return;
  if (const auto put = job.puts.find(key); put != job.puts.end()) {
    v1::ToRank message;
    auto* value = message.mutable_rendezvous_value();
    value->set_job_id(id.job_id);
    value->set_generation(id.generation);
    value->set_key(key);
    value->set_value(put->second);
    host_->Send(id, std::move(message));
    return;
  }
  const bool asked = job.gets.contains(key);
  job.gets[key].insert(id.rank);
  if (asked || !registered_) return;
  v1::WorkerMessage message;
  auto* get = message.mutable_rendezvous_get();
  get->set_job_id(id.job_id);
  get->set_generation(id.generation);
  get->set_key(key);
  Send(std::move(message));
}

void Agent::OnRendezvousValue(const v1::RendezvousValue& value) {
  const auto found = jobs_.find(value.job_id());
  if (found == jobs_.end() || found->second.generation != value.generation()) return;
  const auto asked = found->second.gets.find(value.key());
  if (asked == found->second.gets.end()) return;
  for (const int32_t rank : asked->second) {
    v1::ToRank message;
    *message.mutable_rendezvous_value() = value;
    host_->Send({value.job_id(), value.generation(), rank}, std::move(message));
  }
  found->second.gets.erase(asked);
}

}  // namespace mt
