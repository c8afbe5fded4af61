// The agent's stream to the coordinator: dial, register, replay, beat, and dial again.
#include <algorithm>

#include "common/log.h"
#include "common/proto_time.h"
#include "worker/agent/agent.h"
#include "worker/checkpoint/manifest.h"

namespace mt {
namespace {

constexpr int32_t kProtocolVersion = 1;
constexpr absl::Duration kFirstBackOff = absl::Milliseconds(250);
constexpr absl::Duration kLongestBackOff = absl::Seconds(15);
constexpr absl::Duration kRegisterTimeout = absl::Seconds(20);

}  // namespace

void Agent::Dial() {
  dial_timer_ = 0;
  if (ended_) return;
  const uint64_t attempt = ++attempt_;
  connection_ = dialer_->Dial(
      [this, attempt](v1::CoordinatorMessage message) { OnMessage(attempt, std::move(message)); },
      [this, attempt](absl::Status reason) { OnClosed(attempt, std::move(reason)); });
  v1::WorkerMessage message;
  *message.mutable_register_() = MakeRegister();
  Send(std::move(message));
  register_timer_ = loop_->After(kRegisterTimeout, [this, attempt] {
    register_timer_ = 0;
    OnClosed(attempt, absl::DeadlineExceededError(
                          "the coordinator did not answer the registration in time"));
  });
}

v1::Register Agent::MakeRegister() {
  v1::Register message = options_.identity;
  message.set_protocol_version(kProtocolVersion);
  message.set_next_sequence(spool_->next_sequence());
  message.clear_running();
  for (auto& running : Running()) *message.add_running() = std::move(running);
  message.clear_held();
  if (auto held = ListHeld(env_, JoinPath(options_.state_folder, "checkpoints")); held.ok()) {
    for (auto& checkpoint : *held) *message.add_held() = std::move(checkpoint);
  } else {
    MT_LOG(Warning) << "files of checkpoints here: " << held.status().ToString();
  }
  if (auto free = env_->FreeBytes(options_.state_folder); free.ok())
    message.set_disk_free_bytes(static_cast<int64_t>(*free));
  if (datasets_ != nullptr) message.set_data_cache_limit_bytes(datasets_->LimitBytes());
  return message;
}

void Agent::Send(v1::WorkerMessage message) {
  if (connection_ == nullptr) return;
  message.set_node(options_.node);
  message.set_incarnation(incarnation_);
  connection_->Send(std::move(message));
}

void Agent::SendPending() {
  if (!registered_) return;
  const auto& pending = spool_->Pending();
  auto next = std::upper_bound(
      pending.begin(), pending.end(), sent_sequence_,
      [](int64_t sequence, const v1::WorkerEvent& event) { return sequence < event.sequence(); });
  for (; next != pending.end(); ++next) {
    sent_sequence_ = next->sequence();
    v1::WorkerMessage message;
    *message.mutable_event() = *next;
    Send(std::move(message));
  }
}

void Agent::Disconnect() {
  ++attempt_;  // callbacks of the old stream are ignored from here on
  registered_ = false;
  loop_->Cancel(register_timer_);
  loop_->Cancel(heartbeat_timer_);
  register_timer_ = heartbeat_timer_ = 0;
  // The connection may be the caller: it is destroyed by a task of its own.
  if (connection_ != nullptr) {
    loop_->Post([connection = std::shared_ptr<CoordinatorConnection>(std::move(connection_))] {});
  }
}

void Agent::OnClosed(uint64_t attempt, absl::Status reason) {
  if (attempt != attempt_) return;
  Disconnect();
  if (ended_) return;
  if (absl::IsAborted(reason)) {
    MT_LOG(Error) << "the coordinator has another daemon for this node: " << reason.message()
                  << "; ending";
    end_status_ = reason;
    Shutdown(absl::ZeroDuration(), "another daemon has registered for this node");
    return;
  }
  if (absl::IsFailedPrecondition(reason)) {
    refused_ = true;
    end_status_ = reason;
    EndIfDone();  // what was to start here is started by the daemon that comes next
    if (ended_) return;
  }
  if (failed_dials_ < 3 || failed_dials_ % 20 == 0) {
    MT_LOG(Warning) << "no coordinator: " << reason.ToString() << "; trying again, ranks go on";
  }
  ScheduleDial();
}

void Agent::ScheduleDial() {
  absl::Duration delay = kFirstBackOff;
  for (int i = 0; i < failed_dials_ && delay < kLongestBackOff; ++i) delay *= 2;
  ++failed_dials_;
  delay = std::min(delay, kLongestBackOff) * (0.5 + 0.5 * random_->Uniform());
  dial_timer_ = loop_->After(delay, [this] { Dial(); });
}

void Agent::OnMessage(uint64_t attempt, v1::CoordinatorMessage message) {
  if (attempt != attempt_ || ended_) return;
  if (message.epoch() < epoch_) {
    MT_LOG(Warning) << "a coordinator of epoch " << message.epoch() << " spoke after one of epoch "
                    << epoch_ << ": not obeyed";
    Disconnect();
    ScheduleDial();
    return;
  }
  epoch_ = message.epoch();
  if (message.has_registered()) {
    OnRegistered(message.registered());
    return;
  }
  if (!registered_) return;  // commands come after Registered only
  absl::Status result;
  switch (message.body_case()) {
    case v1::CoordinatorMessage::kAcknowledge:
      spool_->Acknowledge(message.acknowledge().sequence());
      return;
    case v1::CoordinatorMessage::kRendezvousValue:
      OnRendezvousValue(message.rendezvous_value());
      return;
    case v1::CoordinatorMessage::kStartRanks:
      result = StartRanks(std::move(*message.mutable_start_ranks()));
      break;
    case v1::CoordinatorMessage::kLaunchRanks:
      result = LaunchRanks(message.launch_ranks());
      break;
    case v1::CoordinatorMessage::kStopRanks:
      result = StopRanks(message.stop_ranks());
      break;
    case v1::CoordinatorMessage::kFetchFiles:
      result = FetchFiles(message.fetch_files(), message.command_id());
      break;
    case v1::CoordinatorMessage::kCommitManifest:
      result = CommitManifest(message.commit_manifest());
      break;
    case v1::CoordinatorMessage::kDeleteCheckpoint:
      result = DeleteCheckpoint(message.delete_checkpoint());
      break;
    case v1::CoordinatorMessage::kCheckpointNow:
      result = CheckpointNow(message.checkpoint_now());
      break;
    case v1::CoordinatorMessage::kRenewCertificate:
      result = RenewCertificate(message.renew_certificate());
      break;
    case v1::CoordinatorMessage::kShutdownWorker:
      Shutdown(absl::Seconds(10),
               absl::StrCat("the node was told to stop: ", message.shutdown_worker().reason()));
      break;
    default:
      result = absl::UnimplementedError(
          "this worker does not know that command: it is older than the coordinator");
      break;
  }
  if (!result.ok()) {
    MT_LOG(Warning) << "command " << message.command_id() << ": " << result.ToString();
  }
  if (message.command_id().empty()) return;
  v1::WorkerMessage answer;
  auto* command = answer.mutable_command_result();
  command->set_command_id(message.command_id());
  command->set_code(result.raw_code());
  command->set_message(std::string(result.message()));
  Send(std::move(answer));
}

void Agent::OnRegistered(const v1::Registered& registered) {
  loop_->Cancel(register_timer_);
  register_timer_ = 0;
  if (registered_) return;  // a repetition
  registered_ = true;
  failed_dials_ = 0;
  refused_ = false;
  if (!ending_) end_status_ = absl::OkStatus();
  MT_LOG(Info) << "registered with the coordinator, epoch " << epoch_;
  heartbeat_interval_ = ToDuration(registered.heartbeat_interval());
  if (heartbeat_interval_ < absl::Milliseconds(10)) heartbeat_interval_ = absl::Seconds(5);
  spool_->Acknowledge(registered.acknowledged_sequence());

  std::set<RankId> keep;
  for (const auto& rank : registered.keep())
    keep.insert({rank.job_id(), rank.generation(), rank.rank()});
  for (auto& [id, rank] : ranks_) {
    if (!keep.contains(id))
      StopRank(id, rank, rank.stop_grace, "the coordinator does not know this rank any more");
  }
  for (auto& [job_id, job] : jobs_) {
    if (job.waiting_to_start && std::none_of(keep.begin(), keep.end(), [&](const RankId& id) {
          return id.job_id == job_id && id.generation == job.generation;
        })) {
      job.waiting_to_start = false;
      ReleaseData(job_id, job.generation);
    }
  }
  sent_sequence_ = 0;
  SendPending();
  for (const auto& [job_id, job] : jobs_) {
    for (const auto& [key, value] : job.puts) {
      v1::WorkerMessage message;
      auto* put = message.mutable_rendezvous_put();
      put->set_job_id(job_id);
      put->set_generation(job.generation);
      put->set_key(key);
      put->set_value(value);
      Send(std::move(message));
    }
    for (const auto& [key, ranks] : job.gets) {
      v1::WorkerMessage message;
      auto* get = message.mutable_rendezvous_get();
      get->set_job_id(job_id);
      get->set_generation(job.generation);
      get->set_key(key);
      Send(std::move(message));
    }
  }
  // At once: it says that everything kept has been told, and what still runs, so that this node can be given ranks.
  SendHeartbeat();
}

void Agent::SendHeartbeat() {
  heartbeat_timer_ = loop_->After(heartbeat_interval_, [this] { SendHeartbeat(); });
  v1::WorkerMessage message;
  auto* heartbeat = message.mutable_heartbeat();
  SetTime(heartbeat->mutable_time(), loop_->clock()->Now());
  for (auto& running : Running()) *heartbeat->add_running() = std::move(running);
  if (auto free = env_->FreeBytes(options_.state_folder); free.ok())
    heartbeat->set_disk_free_bytes(static_cast<int64_t>(*free));
  if (datasets_ != nullptr) {
    for (v1::DataFetch& fetch : datasets_->Progress())
      *heartbeat->add_data_fetches() = std::move(fetch);
    heartbeat->set_data_cache_bytes(datasets_->CachedBytes());
  }
  if (options_.device_monitor != nullptr) {
    for (v1::Device& device : options_.device_monitor->Sample())
      *heartbeat->add_devices() = std::move(device);
  }
  Send(std::move(message));
}

}  // namespace mt
