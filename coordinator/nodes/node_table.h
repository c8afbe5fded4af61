// The nodes: which daemon speaks for each, whether it is alive, and what of its events has been applied.
//
// Invariants
//  - At most one stream and one incarnation speak for a node. The same incarnation may register again (its newest stream
//    counts); another one means that the daemon was restarted, and the one before it is never let in again (ABORTED).
//  - Every event sequence of an incarnation is applied once; it is acknowledged when what it changed is durable.
//  - A node is settled when its stream is registered and every event that it had kept has been applied (the newest one, or
//    any heartbeat, which comes behind them, tells): only then does the absence of a rank mean anything.
//  - A connected node's certificate never ends: the next one is sent at half its life, and after that until the node has it.
//  - Silence alone kills nothing: SUSPECT changes nothing for jobs, DOWN only says that the node is not counted on. If this
//    very process slept (its timers are late), all deadlines move by as much.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "common/event_loop.h"
#include "common/random.h"
#include "common/transport.h"
#include "coordinator/nodes/launcher.h"
#include "coordinator/nodes/node_config.h"
#include "coordinator/store/ledger.h"
#include "coordinator/tunables.h"
#include "mt/v1/cluster.pb.h"

namespace mt {

// What the job logic does when something happens to a node.
class NodeListener {
 public:
  virtual ~NodeListener() = default;
  // Ranks that should be running on the node now.
  virtual std::vector<v1::RunningRank> RanksToKeep(const std::string& node) = 0;
  // Registered has been queued; commands for the node may follow.
  virtual void OnNodeConnected(const std::string& node) = 0;
  // All kept events are applied; `running` is what the daemon said when it registered.
  virtual void OnNodeSettled(const std::string& node,
                             const std::vector<v1::RunningRank>& running) = 0;
  virtual void OnNodeDisconnected(const std::string& node) = 0;
  // State, draining or slots changed: placement may.
  virtual void OnNodeChanged(const std::string& node) = 0;
  virtual void OnWorkerEvent(const std::string& node, const v1::WorkerEvent& event) = 0;
  // Rendezvous and command results.
  virtual void OnWorkerRequest(const std::string& node, const v1::WorkerMessage& message) = 0;
  // After each message and timer: act on what has changed.
  virtual void Settle() = 0;
};

// The node's next certificate and its key, for `lifetime` from now.
using IssueCertificate = std::function<absl::StatusOr<v1::RenewCertificate>(
    const std::string& node, absl::Duration lifetime)>;

class NodeTable {
 public:
  struct Options {
    EventLoop* loop = nullptr;
    Random* random = nullptr;
    Ledger* ledger = nullptr;
    NodeLauncher* launcher = nullptr;
    NodeListener* listener = nullptr;
    std::vector<NodeConfig> nodes;
    std::string version, bundle_digest;
    IssueCertificate issue_certificate;  // null: without TLS
    CoordinatorTunables tunables;
  };
  explicit NodeTable(Options options);
  ~NodeTable();

  void Start();
  void OnMessage(std::shared_ptr<WorkerStream> stream, v1::WorkerMessage message);
  void OnClosed(const std::shared_ptr<WorkerStream>& stream, const absl::Status& reason);

  // In hostfile order.
  const std::vector<std::string>& names() const { return names_; }
  bool Knows(const std::string& node) const { return nodes_.contains(node); }
  int Slots(const std::string& node) const;
  // Registered, heard lately.
  bool IsReady(const std::string& node) const;
  // Ready, settled, not draining and with no rank left over that should not be there.
  bool IsPlaceable(const std::string& node) const;
  bool IsConnected(const std::string& node) const;
  bool IsDown(const std::string& node) const;
  bool IsDraining(const std::string& node) const;
  std::string Incarnation(const std::string& node) const;
  std::string DataAddress(const std::string& node) const;
  std::string DataInterface(const std::string& node) const;
  std::string ShardsEndpoint(const std::string& node) const;  // empty unless connected
  // What the node's newest heartbeat says of the data of this attempt, or null.
  const v1::DataFetch* DataFetchOf(const std::string& node, const std::string& job_id,
                                   int generation) const;
  // As far as the coordinator knows; infinite without TLS and while the node is not connected.
  absl::Time CertificateExpiry(const std::string& node) const;
  int NumReady() const;
  // False while (and for a while after) fewer than half of the nodes are reachable: then it is probably the coordinator that is
  // cut off, and nothing is to be concluded from a node's silence.
  bool MayGiveUp() const;
  v1::Node Describe(const std::string& node) const;  // without slots_used and jobs

  // Sends when what was changed before is durable; lost when the node is not connected then (the listener sends again when
  // it connects). `on_result` runs with the node's CommandResult; never if the stream breaks first.
  void Send(const std::string& node, v1::CoordinatorMessage message,
            std::function<void(absl::Status)> on_result = nullptr);
  // The same message to many nodes, made and serialized once however many they are; no result is told.
  void SendToAll(const std::set<std::string>& nodes, v1::CoordinatorMessage message);
  // At once, without waiting for the store: for what changes nothing.
  void SendNow(const std::string& node, v1::CoordinatorMessage message);
  void OnCommandResult(const std::string& node, const v1::CommandResult& result);

  // Tells every connected worker to end, stops the others' launches; `done` when no stream is left or the grace is over
  // (then the launcher ends what is left). May be called again meanwhile: every `done` runs.
  void ShutdownWorkers(std::function<void()> done);

  int64_t stale_messages() const { return stale_messages_; }
  int64_t restarts() const { return restarts_; }

 private:
  using RankKey = std::tuple<std::string, int, int>;
  struct Node {
    NodeConfig config;
    v1::NodeState state = v1::NODE_STATE_STARTING;
    std::string reason;
    std::shared_ptr<WorkerStream> stream;  // registered
    absl::Duration last_heard;             // monotonic; of contact or of the coordinator's start
    absl::Time last_heartbeat;
    int64_t applied = 0;  // newest event applied, durable or not
    int64_t replay_until = 0;
    bool settled = false;
    bool acknowledge_queued = false;
    std::vector<v1::RunningRank> running;  // at registration
    std::set<RankKey> unwanted;            // running there although they should not
    int64_t disk_free_bytes = 0;
    std::vector<v1::Device> devices;  // of the newest heartbeat
    std::vector<v1::DataFetch> data_fetches;
    int64_t data_cache_bytes = 0;
    bool launching = false;
    int failed_launches = 0;
    int unheard_launches = 0;  // that went well, since the node was heard
    absl::Duration next_launch;
    uint64_t stream_number = 0;  // which stream a command was sent on
    // Of its stream's certificate, or of the one that it has taken over since.
    absl::Time certificate_expiry = absl::InfiniteFuture();
    absl::Duration next_renewal;
  };

  void Register(Node& node, const std::shared_ptr<WorkerStream>& stream,
                const v1::WorkerMessage& message);
  void ApplyEvent(Node& node, const v1::WorkerEvent& event);
  void QueueAcknowledge(Node& node);
  void SettleNode(Node& node);
  void UpdateUnwanted(Node& node, const std::vector<v1::RunningRank>& running);
  void FinishShutdown();
  void Lose(Node& node, const std::string& reason);
  void SetState(Node& node, v1::NodeState state, const std::string& reason);
  void Tick();
  void MaybeLaunch(Node& node, absl::Duration now);
  void MaybeRenewCertificate(Node& node, absl::Duration now);
  // The id of a command that the node answers on its present stream.
  std::string NewCommand(const Node& node, std::function<void(absl::Status)> on_result);
  void DismissStranger(const std::shared_ptr<WorkerStream>& stream,
                       const v1::WorkerMessage& message);
  void Refuse(const std::shared_ptr<WorkerStream>& stream, absl::Status reason);
  const store::NodeRecord* Record(const std::string& name) const;
  const Node* Find(const std::string& name) const;
  absl::Duration HeartbeatInterval() const {
    return options_.tunables.HeartbeatInterval(static_cast<int>(names_.size()));
  }

  const Options options_;
  std::vector<std::string> names_;
  std::map<std::string, Node> nodes_;
  std::map<WorkerStream*, std::string> streams_;  // registered ones
  struct Command {
    std::string node;
    uint64_t stream_number;
    std::function<void(absl::Status)> on_result;
  };
  std::map<std::string, Command> commands_;
  int64_t last_command_ = 0;
  EventLoop::TimerId tick_timer_ = 0, shutdown_timer_ = 0;
  absl::Duration tick_due_, tick_interval_;
  absl::Duration isolated_at_;  // when fewer than half were reachable last
  std::vector<std::function<void()>> shutdown_done_;
  bool shutting_down_ = false;
  int64_t stale_messages_ = 0, restarts_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace mt
