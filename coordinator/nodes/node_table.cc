#include "coordinator/nodes/node_table.h"

#include <algorithm>

#include "common/check.h"
#include "common/log.h"
#include "common/proto_time.h"

namespace mt {
namespace {

constexpr int kProtocolVersion = 1;
constexpr int kRetiredKept = 64;

std::string Seconds(absl::Duration duration) {
  return absl::StrCat(absl::ToInt64Seconds(duration), " s");
}

}  // namespace

NodeTable::NodeTable(Options options) : options_(std::move(options)) {
  for (const NodeConfig& config : options_.nodes) {
    names_.push_back(config.name);
    Node& node = nodes_[config.name];
    node.config = config;
    if (const store::NodeRecord* record = Record(config.name))
      node.applied = record->acknowledged_sequence();
  }
  tick_interval_ = std::min(absl::Seconds(1), HeartbeatInterval() / 2);
}

NodeTable::~NodeTable() {
  *alive_ = false;
  options_.loop->Cancel(tick_timer_);
  options_.loop->Cancel(shutdown_timer_);
}

void NodeTable::Start() {
  const absl::Duration now = options_.loop->clock()->Monotonic();
  isolated_at_ = now;
  for (auto& [name, node] : nodes_) {
    const store::NodeRecord* record = Record(name);
    const bool known = record != nullptr && !record->incarnation().empty();
    // Known daemons are given time to come back by themselves.
    node.last_heard = now + (known ? options_.tunables.restart_grace - options_.tunables.down_after
                                   : absl::ZeroDuration());
    node.next_launch = now + (known ? options_.tunables.relaunch_after : absl::ZeroDuration());
    if (known)
      SetState(node, v1::NODE_STATE_SUSPECT,
               "the coordinator has started; waiting for the worker to connect");
  }
  Tick();
}

const store::NodeRecord* NodeTable::Record(const std::string& name) const {
  const auto it = options_.ledger->state().nodes.find(name);
  return it == options_.ledger->state().nodes.end() ? nullptr : &it->second;
}

const NodeTable::Node* NodeTable::Find(const std::string& name) const {
  const auto it = nodes_.find(name);
  return it == nodes_.end() ? nullptr : &it->second;
}

void NodeTable::Refuse(const std::shared_ptr<WorkerStream>& stream, absl::Status reason) {
  MT_LOG(Warning) << "worker stream refused: " << reason.ToString();
  stream->Close(std::move(reason));
}

// A node that has left the hostfile: its jobs go on elsewhere, so the ranks that it still runs must end, and nothing else can tell
// it so.
void NodeTable::DismissStranger(const std::shared_ptr<WorkerStream>& stream,
                                const v1::WorkerMessage& message) {
  if (message.has_register_()) {
    v1::CoordinatorMessage answer;
    answer.set_epoch(options_.ledger->state().epoch);
    SetDuration(answer.mutable_registered()->mutable_heartbeat_interval(), HeartbeatInterval());
    stream->Send(std::move(answer));  // `keep` names no rank
  }
  Refuse(stream, absl::PermissionDeniedError(absl::StrCat(
                     "node \"", message.node(), "\" is not in the hostfile of this cluster")));
}

void NodeTable::OnMessage(std::shared_ptr<WorkerStream> stream, v1::WorkerMessage message) {
  const auto it = nodes_.find(message.node());
  if (const std::string authenticated = stream->AuthenticatedNode();
      !authenticated.empty() && authenticated != message.node()) {
    Refuse(stream, absl::PermissionDeniedError(absl::StrCat("the certificate is for node \"",
                                                            authenticated, "\", the message for \"",
                                                            message.node(), "\"")));
    return;
  }
  if (it == nodes_.end()) {
    DismissStranger(stream, message);
    return;
  }
  Node& node = it->second;
  if (message.has_register_()) {
    node.unheard_launches = 0;
    Register(node, stream, message);
    options_.listener->Settle();
    return;
  }
  if (node.stream != stream) {
    ++stale_messages_;
    const store::NodeRecord* record = Record(message.node());
    if (record != nullptr && record->incarnation() != message.incarnation()) {
      Refuse(stream, absl::AbortedError("another incarnation of this node's worker is registered"));
    }
    return;  // an older stream of the same daemon: what it carried comes again on the new one
  }
  if (message.incarnation() != Record(message.node())->incarnation()) {
    ++stale_messages_;
    Refuse(stream, absl::AbortedError("another incarnation of this node's worker is registered"));
    Lose(node, "its stream mixed incarnations");
    return;
  }
  node.last_heard = options_.loop->clock()->Monotonic();
  if (node.state == v1::NODE_STATE_SUSPECT || node.state == v1::NODE_STATE_DOWN)
    SetState(node, v1::NODE_STATE_READY, "");
  switch (message.body_case()) {
    case v1::WorkerMessage::kHeartbeat:
      node.last_heartbeat = options_.loop->clock()->Now();
      node.disk_free_bytes = message.heartbeat().disk_free_bytes();
      node.devices.assign(message.heartbeat().devices().begin(),
                          message.heartbeat().devices().end());
      node.data_fetches.assign(message.heartbeat().data_fetches().begin(),
                               message.heartbeat().data_fetches().end());
      node.data_cache_bytes = message.heartbeat().data_cache_bytes();
      UpdateUnwanted(node,
                     {message.heartbeat().running().begin(), message.heartbeat().running().end()});
      // Kept events are sent right after Registered, and this stream is ordered.
      if (!node.settled) SettleNode(node);
      break;
    case v1::WorkerMessage::kEvent:
      ApplyEvent(node, message.event());
      break;
    case v1::WorkerMessage::kCommandResult:
      OnCommandResult(message.node(), message.command_result());
      break;
    default:
      options_.listener->OnWorkerRequest(message.node(), message);
      break;
  }
  options_.listener->Settle();
}

void NodeTable::Register(Node& node, const std::shared_ptr<WorkerStream>& stream,
                         const v1::WorkerMessage& message) {
  const std::string& name = message.node();
  const v1::Register& registration = message.register_();
  const store::NodeRecord* old = Record(name);
  const bool known = old != nullptr && !old->incarnation().empty();
  if (message.incarnation().empty()) {
    Refuse(stream, absl::InvalidArgumentError(
                       absl::StrCat("node ", name, " registered without an incarnation")));
    return;
  }
  if (old != nullptr &&
      std::count(old->retired().begin(), old->retired().end(), message.incarnation()) > 0) {
    ++stale_messages_;
    Refuse(stream,
           absl::AbortedError(absl::StrCat("incarnation ", message.incarnation(), " of node ", name,
                                           " was replaced by ", old->incarnation())));
    return;
  }
  absl::Status refusal;
  if (registration.protocol_version() != kProtocolVersion) {
    refusal = absl::FailedPreconditionError(absl::StrCat("worker speaks protocol ",
                                                         registration.protocol_version(),
                                                         ", the coordinator ", kProtocolVersion));
  } else if (!options_.version.empty() && registration.version() != options_.version) {
    refusal = absl::FailedPreconditionError(absl::StrCat(
        "worker has version ", registration.version(), ", the coordinator ", options_.version));
  } else if (!options_.bundle_digest.empty() &&
             registration.bundle_digest() != options_.bundle_digest) {
    refusal = absl::FailedPreconditionError(
        absl::StrCat("worker has bundle ", registration.bundle_digest(), ", the coordinator ",
                     options_.bundle_digest));
  }
  if (!refusal.ok()) {
    // The daemon ends by itself when no rank is left there, and the launcher, which leaves a living daemon alone, starts ours.
    node.reason = absl::StrCat(
        refusal.message(),
        registration.running_size() == 0
            ? "; it is being replaced"
            : absl::StrCat("; ", registration.running_size(),
                           " rank(s) run there without this coordinator, and it is replaced when "
                           "they have ended; to end them now: kill the process that daemon.pid in "
                           "the node's folder names (~/.mt/",
                           options_.ledger->state().cluster_id, "/", name, " there, or nodes/",
                           name, " in the coordinator's state folder)"));
    options_.listener->OnNodeChanged(name);
    Refuse(stream, absl::FailedPreconditionError(node.reason));
    return;
  }
  if (node.stream != nullptr && node.stream != stream) {
    streams_.erase(node.stream.get());
    const std::shared_ptr<WorkerStream> replaced = std::move(node.stream);
    node.stream = nullptr;
    options_.listener->OnNodeDisconnected(name);
    replaced->Close(
        known && old->incarnation() != message.incarnation()
            ? absl::AbortedError("another incarnation of this node's worker is registered")
            : absl::CancelledError("this worker has opened another stream"));
  }
  store::NodeRecord& record = options_.ledger->EditNode(name);
  record.set_name(name);
  if (record.incarnation() != message.incarnation()) {
    if (known) {
      record.add_retired(record.incarnation());
      if (record.retired_size() > kRetiredKept)
        record.mutable_retired()->DeleteSubrange(0, record.retired_size() - kRetiredKept);
      ++restarts_;
      options_.ledger->AddEvent("node_restarted", "", name, 0,
                                "the worker daemon was started again");
    } else {
      options_.ledger->AddEvent("node_joined", "", name, 0,
                                absl::StrCat("registered with ", registration.slots(), " slots"));
    }
    record.set_incarnation(message.incarnation());
    record.set_acknowledged_sequence(0);
    node.applied = 0;
  }
  *record.mutable_registered() = registration;
  record.mutable_registered()->clear_running();
  record.mutable_registered()->clear_held();

  streams_[stream.get()] = name;
  node.stream = stream;
  ++node.stream_number;
  node.last_heard = options_.loop->clock()->Monotonic();
  node.last_heartbeat = options_.loop->clock()->Now();
  node.disk_free_bytes = registration.disk_free_bytes();
  node.failed_launches = 0;
  node.certificate_expiry = stream->CertificateExpiry();
  node.next_renewal = absl::ZeroDuration();
  node.settled = false;
  node.replay_until = registration.next_sequence() - 1;
  node.running.assign(registration.running().begin(), registration.running().end());

  v1::CoordinatorMessage answer;
  auto* registered = answer.mutable_registered();
  SetDuration(registered->mutable_heartbeat_interval(), HeartbeatInterval());
  registered->set_acknowledged_sequence(record.acknowledged_sequence());
  for (v1::RunningRank& rank : options_.listener->RanksToKeep(name))
    *registered->add_keep() = std::move(rank);
  Send(name, std::move(answer));
  UpdateUnwanted(node, node.running);
  SetState(node, v1::NODE_STATE_READY, "");
  MaybeRenewCertificate(node, node.last_heard);
  options_.listener->OnNodeConnected(name);
  if (node.applied >= node.replay_until) SettleNode(node);
}

void NodeTable::UpdateUnwanted(Node& node, const std::vector<v1::RunningRank>& running) {
  std::set<RankKey> unwanted;
  for (const v1::RunningRank& rank : running)
    unwanted.emplace(rank.job_id(), rank.generation(), rank.rank());
  for (const v1::RunningRank& rank : options_.listener->RanksToKeep(node.config.name)) {
    unwanted.erase({rank.job_id(), rank.generation(), rank.rank()});
  }
  const bool changed = unwanted.empty() != node.unwanted.empty();
  node.unwanted = std::move(unwanted);
  if (changed) options_.listener->OnNodeChanged(node.config.name);
}

void NodeTable::ApplyEvent(Node& node, const v1::WorkerEvent& event) {
  const std::string& name = node.config.name;
  if (event.sequence() > node.applied) {
    node.applied = event.sequence();
    options_.ledger->EditNode(name).set_acknowledged_sequence(event.sequence());
    options_.listener->OnWorkerEvent(name, event);
    if (event.has_rank_exited() &&
        node.unwanted.erase({event.job_id(), event.generation(), event.rank()}) > 0 &&
        node.unwanted.empty()) {
      options_.listener->OnNodeChanged(name);
    }
  }
  QueueAcknowledge(node);
  if (!node.settled && node.applied >= node.replay_until) SettleNode(node);
}

void NodeTable::QueueAcknowledge(Node& node) {
  if (node.acknowledge_queued) return;
  node.acknowledge_queued = true;
  options_.ledger->AfterCommit(
      [this, &node] {
        node.acknowledge_queued = false;
        if (node.stream == nullptr) return;
        v1::CoordinatorMessage message;
        // Effects run right after their commit, so the record is the durable one.
        message.mutable_acknowledge()->set_sequence(
            Record(node.config.name)->acknowledged_sequence());
        SendNow(node.config.name, std::move(message));
      },
      /*prompt=*/false);
}

void NodeTable::SettleNode(Node& node) {
  node.settled = true;
  options_.listener->OnNodeSettled(node.config.name, node.running);
  options_.listener->OnNodeChanged(node.config.name);
}

void NodeTable::OnClosed(const std::shared_ptr<WorkerStream>& stream, const absl::Status& reason) {
  const auto it = streams_.find(stream.get());
  if (it == streams_.end()) return;
  Lose(nodes_.at(it->second), absl::StrCat("its stream broke: ", reason.message()));
  options_.listener->Settle();
}

void NodeTable::Lose(Node& node, const std::string& reason) {
  if (node.stream == nullptr) return;
  streams_.erase(node.stream.get());
  node.stream = nullptr;
  node.settled = false;
  const absl::Duration now = options_.loop->clock()->Monotonic();
  node.last_heard = std::max(node.last_heard, now - options_.tunables.down_after / 2);
  node.next_launch = now + options_.tunables.relaunch_after;
  SetState(node, v1::NODE_STATE_SUSPECT, reason);
  options_.listener->OnNodeDisconnected(node.config.name);
  if (shutting_down_ && streams_.empty()) FinishShutdown();
}

void NodeTable::SetState(Node& node, v1::NodeState state, const std::string& reason) {
  const bool changed = node.state != state;
  node.state = state;
  node.reason = reason;
  if (!changed) return;
  if (state == v1::NODE_STATE_SUSPECT)
    options_.ledger->AddEvent("node_suspect", "", node.config.name, 0, reason);
  if (state == v1::NODE_STATE_DOWN)
    options_.ledger->AddEvent("node_down", "", node.config.name, 0, reason);
  if (state == v1::NODE_STATE_READY)
    options_.ledger->AddEvent("node_ready", "", node.config.name, 0, "connected");
  options_.listener->OnNodeChanged(node.config.name);
}

void NodeTable::Tick() {
  const absl::Duration now = options_.loop->clock()->Monotonic();
  if (tick_timer_ != 0 && now - tick_due_ > absl::Seconds(1)) {
    // This process was stopped or starved: what the workers sent meanwhile waits behind this task.
    const absl::Duration late = now - tick_due_;
    MT_LOG(Warning) << "the coordinator stood still for " << Seconds(late)
                    << "; all deadlines move by as much";
    for (auto& [name, node] : nodes_) node.last_heard += late;
  }
  const CoordinatorTunables& tunables = options_.tunables;
  for (auto& [name, node] : nodes_) {
    const absl::Duration silent = now - node.last_heard;
    if (node.stream != nullptr && node.state == v1::NODE_STATE_READY &&
        silent > tunables.suspect_after_missed * HeartbeatInterval()) {
      SetState(node, v1::NODE_STATE_SUSPECT, absl::StrCat("no heartbeat for ", Seconds(silent)));
    }
    if (node.state == v1::NODE_STATE_SUSPECT && silent > tunables.down_after) {
      if (node.stream != nullptr) {
        const std::shared_ptr<WorkerStream> stream = node.stream;
        Lose(node, absl::StrCat("no heartbeat for ", Seconds(silent)));
        stream->Close(absl::UnavailableError("no heartbeat"));
      }
      SetState(node, v1::NODE_STATE_DOWN,
               absl::StrCat("not heard of for ", Seconds(silent), "; ", node.reason));
    }
    MaybeLaunch(node, now);
    MaybeRenewCertificate(node, now);
  }
  if (2 * NumReady() < static_cast<int>(names_.size())) isolated_at_ = now;
  tick_due_ = now + tick_interval_;
  tick_timer_ = options_.loop->After(tick_interval_, [this] { Tick(); });
  options_.listener->Settle();
}

void NodeTable::MaybeLaunch(Node& node, absl::Duration now) {
  if (options_.launcher == nullptr || node.stream != nullptr || node.launching || shutting_down_ ||
      now < node.next_launch)
    return;
  node.launching = true;
  options_.launcher->Launch(node.config, [this, alive = alive_, &node](absl::Status status) {
    if (!*alive) return;
    node.launching = false;
    const CoordinatorTunables& tunables = options_.tunables;
    absl::Duration delay = tunables.launch_backoff_min;
    for (int i = 0; i < node.failed_launches && delay < tunables.launch_backoff_max; ++i)
      delay *= 2;
    delay =
        std::min(delay, tunables.launch_backoff_max) * (0.75 + 0.5 * options_.random->Uniform());
    ++node.failed_launches;
    // A daemon that was started needs a moment to connect.
    node.next_launch = options_.loop->clock()->Monotonic() +
                       std::max(delay, status.ok() ? absl::Seconds(10) : delay);
    if (node.stream != nullptr) return;
    if (status.ok() && ++node.unheard_launches < 2) return;  // it may be on its way
    const std::string reason =
        status.ok() ? absl::StrCat("its daemon runs but does not reach this coordinator: ",
                                   options_.launcher->Whereabouts(node.config))
                    : std::string(status.message());
    if (node.state == v1::NODE_STATE_STARTING) {
      SetState(node, v1::NODE_STATE_DOWN, reason);
    } else {
      node.reason = reason;
      options_.listener->OnNodeChanged(node.config.name);
    }
    options_.listener->Settle();
  });
}

// The stream itself does not notice that its certificate ends, but every connection that the node opens or accepts after that
// fails: copies of checkpoints, data, its own next stream. A certificate that is lost on its way does no harm, for the present one is
// good for as long again.
void NodeTable::MaybeRenewCertificate(Node& node, absl::Duration now) {
  const CoordinatorTunables& tunables = options_.tunables;
  if (!options_.issue_certificate || node.stream == nullptr || shutting_down_ ||
      now < node.next_renewal)
    return;
  const absl::Time time = options_.loop->clock()->Now();
  if (node.certificate_expiry - time > tunables.node_certificate_lifetime / 2) return;
  node.next_renewal = now + tunables.certificate_retry;
  const std::string& name = node.config.name;
  const absl::Time expiry = time + tunables.node_certificate_lifetime;
  absl::StatusOr<v1::RenewCertificate> next =
      options_.issue_certificate(name, tunables.node_certificate_lifetime);
  if (!next.ok()) {
    MT_LOG(Error) << "node " << name << "'s certificate, which ends at " << node.certificate_expiry
                  << ", cannot be renewed: " << next.status().ToString();
    return;
  }
  v1::CoordinatorMessage message;
  *message.mutable_renew_certificate() = *std::move(next);
  message.set_command_id(NewCommand(node, [&node, expiry](const absl::Status& status) {
    if (status.ok()) {
      node.certificate_expiry = expiry;
      return;
    }
    MT_LOG(Warning) << "node " << node.config.name << " could not take its next certificate ("
                    << status.ToString() << "); its present one ends at " << node.certificate_expiry
                    << "; it is sent again";
  }));
  SendNow(name, std::move(message));  // changes no row
}

std::string NodeTable::NewCommand(const Node& node, std::function<void(absl::Status)> on_result) {
  std::string id = absl::StrCat(options_.ledger->state().epoch, "-", ++last_command_);
  commands_[id] = {node.config.name, node.stream_number, std::move(on_result)};
  return id;
}

void NodeTable::SendNow(const std::string& name, v1::CoordinatorMessage message) {
  const auto it = nodes_.find(name);
  if (it == nodes_.end() || it->second.stream == nullptr) return;
  message.set_epoch(options_.ledger->state().epoch);
  it->second.stream->Send(std::move(message));
}

void NodeTable::Send(const std::string& name, v1::CoordinatorMessage message,
                     std::function<void(absl::Status)> on_result) {
  const auto it = nodes_.find(name);
  if (it == nodes_.end()) return;  // it has left the hostfile since the job was placed
  Node& node = it->second;
  const uint64_t stream_number = node.stream_number;
  std::string id;
  if (on_result) {
    id = NewCommand(node, std::move(on_result));
    message.set_command_id(id);
  }
  options_.ledger->AfterCommit([this, &node, stream_number, id, message = std::move(message)] {
    if (node.stream == nullptr || node.stream_number != stream_number) {
      commands_.erase(id);
      return;
    }
    SendNow(node.config.name, message);
  });
}

void NodeTable::SendToAll(const std::set<std::string>& nodes, v1::CoordinatorMessage message) {
  message.set_epoch(options_.ledger->state().epoch);
  const auto shared = std::make_shared<const SharedMessage>(std::move(message));
  for (const std::string& name : nodes) {
    const auto it = nodes_.find(name);
    if (it == nodes_.end()) continue;
    Node& node = it->second;
    options_.ledger->AfterCommit([&node, stream_number = node.stream_number, shared] {
      if (node.stream != nullptr && node.stream_number == stream_number)
        node.stream->SendShared(shared);
    });
  }
}

void NodeTable::OnCommandResult(const std::string& node, const v1::CommandResult& result) {
  auto command = commands_.extract(result.command_id());
  if (command.empty() || command.mapped().node != node) return;
  command.mapped().on_result(
      absl::Status(static_cast<absl::StatusCode>(result.code()), result.message()));
  // Commands of older streams of this node will not be answered.
  const uint64_t current = nodes_.at(node).stream_number;
  std::erase_if(commands_, [&](const auto& entry) {
    return entry.second.node == node && entry.second.stream_number < current;
  });
}

void NodeTable::ShutdownWorkers(std::function<void()> done) {
  shutting_down_ = true;
  shutdown_done_.push_back(std::move(done));
  for (const std::string& name : names_) {
    v1::CoordinatorMessage message;
    message.mutable_shutdown_worker()->set_reason("the cluster is going down");
    Send(name, std::move(message));
  }
  if (streams_.empty()) {
    FinishShutdown();
    return;
  }
  if (shutdown_timer_ != 0) return;  // of an earlier call
  shutdown_timer_ = options_.loop->After(options_.tunables.shutdown_grace, [this] {
    shutdown_timer_ = 0;
    if (shutdown_done_.empty()) return;
    auto left = std::make_shared<int>(0);
    auto finish = [this, alive = alive_, left](absl::Status) {
      if (--*left == 0 && *alive) FinishShutdown();
    };
    for (auto& [name, node] : nodes_) {
      if (node.stream == nullptr || options_.launcher == nullptr) continue;
      ++*left;
      options_.launcher->Stop(node.config, finish);
    }
    if (*left == 0) FinishShutdown();
  });
}

void NodeTable::FinishShutdown() {
  for (auto& done : std::exchange(shutdown_done_, {})) options_.loop->Post(std::move(done));
}

int NodeTable::Slots(const std::string& name) const {
  const Node* node = Find(name);
  if (node == nullptr) return 0;
  const store::NodeRecord* record = Record(name);
  const int registered = record == nullptr ? 0 : record->registered().slots();
  if (node->config.slots == 0) return registered;
  return registered == 0 ? node->config.slots : std::min(node->config.slots, registered);
}

bool NodeTable::IsReady(const std::string& name) const {
  const Node* node = Find(name);
  return node != nullptr && node->stream != nullptr && node->state == v1::NODE_STATE_READY;
}

bool NodeTable::IsPlaceable(const std::string& name) const {
  const Node* node = Find(name);
  return IsReady(name) && node->settled && node->unwanted.empty() && !IsDraining(name);
}

bool NodeTable::IsConnected(const std::string& name) const {
  const Node* node = Find(name);
  return node != nullptr && node->stream != nullptr;
}

bool NodeTable::IsDown(const std::string& name) const {
  const Node* node = Find(name);
  return node == nullptr || node->state == v1::NODE_STATE_DOWN;
}

bool NodeTable::IsDraining(const std::string& name) const {
  const store::NodeRecord* record = Record(name);
  return record != nullptr && record->draining();
}

std::string NodeTable::Incarnation(const std::string& name) const {
  const store::NodeRecord* record = Record(name);
  return record == nullptr ? "" : record->incarnation();
}

std::string NodeTable::DataAddress(const std::string& name) const {
  const store::NodeRecord* record = Record(name);
  return record == nullptr ? "" : record->registered().data_address();
}

std::string NodeTable::DataInterface(const std::string& name) const {
  const store::NodeRecord* record = Record(name);
  return record == nullptr ? "" : record->registered().data_interface();
}

std::string NodeTable::ShardsEndpoint(const std::string& name) const {
  const store::NodeRecord* record = Record(name);
  return record == nullptr || !IsConnected(name) ? "" : record->registered().shards_endpoint();
}

const v1::DataFetch* NodeTable::DataFetchOf(const std::string& name, const std::string& job_id,
                                            int generation) const {
  const Node* node = Find(name);
  if (node == nullptr) return nullptr;
  for (const v1::DataFetch& fetch : node->data_fetches) {
    if (fetch.job_id() == job_id && fetch.generation() == generation) return &fetch;
  }
  return nullptr;
}

absl::Time NodeTable::CertificateExpiry(const std::string& name) const {
  const Node* node = Find(name);
  return node == nullptr || node->stream == nullptr ? absl::InfiniteFuture()
                                                    : node->certificate_expiry;
}

int NodeTable::NumReady() const {
  return static_cast<int>(std::count_if(names_.begin(), names_.end(),
                                        [&](const std::string& name) { return IsReady(name); }));
}

bool NodeTable::MayGiveUp() const {
  return 2 * NumReady() >= static_cast<int>(names_.size()) &&
         options_.loop->clock()->Monotonic() - isolated_at_ >= options_.tunables.down_after;
}

v1::Node NodeTable::Describe(const std::string& name) const {
  v1::Node result;
  const Node* node = Find(name);
  if (node == nullptr) return result;
  result.set_name(name);
  result.set_address(node->config.address);
  result.set_ssh_port(node->config.port);
  result.set_slots(Slots(name));
  result.set_state(IsDraining(name) && node->state == v1::NODE_STATE_READY ? v1::NODE_STATE_DRAINING
                                                                           : node->state);
  result.set_reason(node->reason);
  if (const store::NodeRecord* record = Record(name)) {
    const v1::Register& registered = record->registered();
    result.set_incarnation(record->incarnation());
    result.set_data_address(registered.data_address());
    result.set_data_interface(registered.data_interface());
    result.set_data_interface_reason(registered.data_interface_reason());
    result.set_cores(registered.cores());
    result.set_memory_bytes(registered.memory_bytes());
    result.set_data_cache_limit_bytes(registered.data_cache_limit_bytes());
    result.set_worker_version(registered.version());
    result.set_bundle_digest(registered.bundle_digest());
    *result.mutable_backends() = registered.backends();
  }
  if (node->last_heartbeat != absl::Time())
    SetTime(result.mutable_last_heartbeat(), node->last_heartbeat);
  result.set_disk_free_bytes(node->disk_free_bytes);
  for (const v1::Device& device : node->devices) *result.add_devices() = device;
  result.set_data_cache_bytes(node->data_cache_bytes);
  return result;
}

}  // namespace mt
