// The worker daemon's logic: what a node does for the coordinator. Single-threaded on one
// EventLoop; everything outside is passed in, so that the simulation runs this very code.
// docs/spec/worker-stream.md tells the protocol.
//
// Invariants
//  - A rank never stops because the coordinator cannot be reached. The stream is dialled again for
//  ever, with back-off and jitter.
//  - Truth is durable before it is told: every event is in the spool before it is sent and stays
//  until acknowledged; after a
//    reconnect all that is not acknowledged is sent again, in order.
//  - A rank (job, generation, number) is started at most once by one state folder. A newer
//  generation ends an older one, and
//    starts when the older one's processes are gone. An older generation's commands are answered
//    ABORTED.
//  - Every rank that was started has exactly one RankExited event, also over a crash of the daemon:
//  a new incarnation reports
//    the ranks that the record of the last one names as running (they ended with it), with status
//    ABORTED.
//  - Ranks of a job on several nodes start when the coordinator has compared the data of all of them
//  (LaunchRanks). Nothing is fetched, read or digested on the loop.
//  - What a rank says first about its end (Finished) is its end: neither a stop nor the signal that ends its process changes it.
//  From then on it has fault.stop_grace to be gone (after success at least fault.min_step_deadline, for its peers may be
//  slower), and is killed if it is not: what it still does (waiting for peers in a library, an exit that blocks) must not keep
//  its job.
//  - A coordinator with a smaller epoch than one seen before is not obeyed: its stream is closed.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/env.h"
#include "common/event_loop.h"
#include "common/random.h"
#include "common/transport.h"
#include "worker/agent/data_checker.h"
#include "worker/agent/dataset_provider.h"
#include "worker/agent/device_monitor.h"
#include "worker/agent/file_fetcher.h"
#include "worker/agent/hang_detector.h"
#include "worker/agent/rank_host.h"
#include "worker/agent/spool.h"

namespace mt {

struct AgentOptions {
  std::string node;          // name in the hostfile
  std::string state_folder;  // exists; private to this daemon
  v1::Register identity;  // version, bundle_digest, slots, cores, memory, addresses, backends; the
                          // agent fills in the rest
  int32_t threads_per_rank = 0;  // used when the spec says none; 0: cores / slots, at least 1
  // A rank's forwarded output; more is in its log file only, and counted.
  int64_t log_bytes_per_second = 64 << 10;
  int64_t log_burst_bytes = 512 << 10;
  // Puts the daemon's next certificate and key in the place of its present ones; null: it runs without TLS.
  std::function<absl::Status(const v1::RenewCertificate&)> renew_certificate;
  DeviceMonitor* device_monitor = nullptr;  // none: heartbeats tell nothing of devices
};

class Agent : public RankHandler {
 public:
  // Everything passed in outlives the agent. `datasets` may be null where no job distributes its data. `on_ended` runs on the loop when the daemon should
  // exit: OK after Shutdown or ShutdownWorker, ABORTED when another incarnation of this node has
  // registered, FAILED_PRECONDITION when the coordinator is of another version and the last rank has ended. No rank is alive then.
  Agent(AgentOptions options, EventLoop* loop, Env* env, Random* random, CoordinatorDialer* dialer,
        RankHost* host, FileFetcher* fetcher, DataChecker* data_checker, DatasetProvider* datasets,
        std::function<void(absl::Status)> on_ended);
  ~Agent() override;

  // Opens the spool, reports what the last incarnation left, dials. Call on the loop. Errors: the
  // state folder is unusable.
  absl::Status Start();
  // Stops all ranks (SIGTERM, then SIGKILL after `grace`), then ends. Call on the loop.
  void Shutdown(absl::Duration grace, const std::string& reason);

  const std::string& incarnation() const { return incarnation_; }
  bool registered() const { return registered_; }
  size_t num_ranks() const { return ranks_.size(); }
  const Spool& spool() const { return *spool_; }

  // RankHandler.
  void OnRankMessage(const RankId& id, v1::FromRank message) override;
  void OnRankOutput(const RankId& id, std::string data, bool is_stderr, int64_t offset) override;
  void OnRankExited(const RankId& id, RankExit exit) override;

  // Root of checkpoints: the shared path, or this node's own store (which the Shards service
  // serves) when it is empty.
  std::string StoreRoot(const std::string& path) const {
    return path.empty() ? JoinPath(options_.state_folder, "checkpoints") : path;
  }

 private:
  struct Rank {
    int32_t pid = 0;
    int32_t slot = 0;
    std::unique_ptr<HangDetector> hang;
    v1::Finished finished;  // what it said before it ended
    bool has_finished = false;
    bool overdue = false;  // had finished, did not end and was killed by us
    bool stopped = false;  // told to stop by us before it had finished
    bool hung = false;
    std::string stop_reason;
    absl::Duration stop_grace;
    absl::Duration finish_grace;  // for peers to come along: as long as one may be silent in a step
    EventLoop::TimerId kill_timer = 0;
    double log_tokens = 0;  // bytes that may be forwarded now
    absl::Duration log_refilled;
    int64_t dropped_lines = 0, dropped_bytes = 0;
  };
  // One job on this node: its newest generation.
  struct Job {
    int32_t generation = 0;
    v1::StartRanks start;
    // Older ranks are still ending, or the data is not here, not checked or not compared.
    bool waiting_to_start = false;
    bool data_checked = false;  // found good, and told
    bool may_launch = false;    // the coordinator has compared it
    absl::Duration data_asked;
    std::map<std::string, std::string> puts;        // rendezvous values of this node's ranks
    std::map<std::string, std::set<int32_t>> gets;  // keys asked for, and by whom
  };

  // Connection (agent_connection.cc).
  void Dial();
  void OnClosed(uint64_t attempt, absl::Status reason);
  void OnMessage(uint64_t attempt, v1::CoordinatorMessage message);
  void OnRegistered(const v1::Registered& registered);
  void Disconnect();
  void ScheduleDial();
  void SendPending();
  void SendHeartbeat();
  void Send(v1::WorkerMessage message);
  v1::Register MakeRegister();

  // Commands (agent_commands.cc).
  absl::Status StartRanks(v1::StartRanks start);
  absl::Status LaunchRanks(const v1::LaunchRanks& launch);
  absl::Status StopRanks(const v1::StopRanks& stop);
  absl::Status CheckpointNow(const v1::CheckpointNow& command);
  absl::Status RenewCertificate(const v1::RenewCertificate& next);
  absl::Status CommitManifest(const v1::CommitManifest& commit);
  absl::Status FetchFiles(const v1::FetchFiles& fetch, const std::string& command_id);
  absl::Status DeleteCheckpoint(const v1::DeleteCheckpoint& command);
  // `rank`: who waits for it, if a rank does.
  void FetchOnce(FetchRequest request, const RankId* rank, std::function<void(absl::Status)> done);
  void PardonRanksThatFetch(absl::Duration now);
  void NeedFile(const RankId& id, const std::string& file);
  void OnRendezvousPut(const RankId& id, v1::RendezvousPut put);
  void OnRendezvousGet(const RankId& id, const std::string& key);
  void OnRendezvousValue(const v1::RendezvousValue& value);

  // The job's data (agent_data.cc).
  Job* WaitingJob(const std::string& job_id, int32_t generation);  // null: it no longer waits
  void PrepareData(Job& job);
  void CheckData(Job& job, ProvidedDatasets provided);
  void ReportData(Job& job, const ProvidedDatasets& provided, const DataFingerprints& fingerprints);
  void RefuseData(Job& job, const absl::Status& why);
  void ReleaseData(const std::string& job_id, int32_t generation);  // unless it is in use

  // Ranks (agent.cc).
  absl::Status ReportLastIncarnation();
  absl::Status SaveRecord();
  void LaunchIfReady(Job& job);
  void Launch(Job& job);
  void StopRank(const RankId& id, Rank& rank, absl::Duration grace, const std::string& reason);
  void KillRank(const RankId& id, Rank& rank);
  void KillAfter(const RankId& id, Rank& rank, absl::Duration grace);
  void OnFinished(const RankId& id, Rank& rank, v1::Finished finished);
  void OnHangTimer();
  void CheckHangs();
  void Emit(v1::WorkerEvent event);
  v1::WorkerEvent NewEvent(const RankId& id) const;
  void ForwardLog(const RankId& id, Rank& rank, std::string data, bool is_stderr, int64_t offset);
  void FlushDrops(const RankId& id, Rank& rank, int64_t offset);
  void EndIfDone();
  std::vector<v1::RunningRank> Running() const;

  const AgentOptions options_;
  EventLoop* const loop_;
  Env* const env_;
  Random* const random_;
  CoordinatorDialer* const dialer_;
  RankHost* const host_;
  FileFetcher* const fetcher_;
  DataChecker* const data_checker_;
  DatasetProvider* const datasets_;
  std::function<void(absl::Status)> on_ended_;
  std::string incarnation_;
  std::unique_ptr<Spool> spool_;

  std::unique_ptr<CoordinatorConnection> connection_;
  uint64_t attempt_ = 0;  // of Dial; callbacks of an older one are ignored
  int failed_dials_ = 0;
  bool registered_ = false;
  int64_t sent_sequence_ = 0;  // on this stream
  int64_t epoch_ = 0;
  absl::Duration heartbeat_interval_ = absl::Seconds(5);
  EventLoop::TimerId dial_timer_ = 0, heartbeat_timer_ = 0, register_timer_ = 0, hang_timer_ = 0;
  absl::Duration hang_check_due_;

  std::map<RankId, Rank> ranks_;
  std::map<std::string, Job> jobs_;
  struct FileTransfer {
    std::vector<std::function<void(absl::Status)>> waiting;
    std::set<RankId> ranks;  // of those that wait
    std::shared_ptr<std::atomic<int64_t>> moved = std::make_shared<std::atomic<int64_t>>();
    int64_t seen = 0;  // of `moved`
  };
  std::map<std::string, FileTransfer> fetches_;  // by destination
  bool refused_ = false;  // by a coordinator of another version: ends when no rank is left
  bool ending_ = false;
  bool ended_ = false;
  absl::Status end_status_;
  std::shared_ptr<bool> alive_ =
      std::make_shared<bool>(true);  // for callbacks that outlive the agent
};

}  // namespace mt
