// The coordinator's logic as one object: what the API layer, the telemetry and the worker streams call, all on one
// EventLoop. Reached only through Clock (of the loop), Env, Random, StateStore, NodeLauncher and WorkerStream, so the same
// object runs in mt-coordinator and, with a hundred simulated nodes, in tests/simulation.
//
// Invariant: a change is durable before anybody hears of it. Handlers change the in-memory image and queue their messages,
// notifications and answers; Flush commits the image's changes and then lets the queue out. When the state disk is full the
// queue waits (running jobs go on, workers keep their events), and Submit, Cancel, Pause, Resume, Drain answer
// RESOURCE_EXHAUSTED having changed nothing.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/random.h"
#include "common/transport.h"
#include "coordinator/jobs/dataset_digester.h"
#include "coordinator/jobs/log_store.h"
#include "coordinator/nodes/launcher.h"
#include "coordinator/nodes/node_config.h"
#include "coordinator/store/state_store.h"
#include "coordinator/tunables.h"
#include "mt/v1/checkpoints.pb.h"
#include "mt/v1/cluster.pb.h"
#include "mt/v1/jobs.pb.h"
#include "mt/v1/worker.pb.h"

namespace mt {

struct CoordinatorOptions {
  EventLoop* loop = nullptr;
  Env* env = Env::Real();
  Random* random = Random::Real();
  StateStore* store = nullptr;       // outlives the coordinator
  NodeLauncher* launcher = nullptr;  // may be null: workers are started by somebody else
  DatasetDigester* digester =
      nullptr;  // null: jobs cannot distribute their data; outlives the coordinator
  std::vector<NodeConfig> nodes;  // in hostfile order
  std::string state_directory;    // logs go to <state_directory>/logs
  std::string
      version;  // a worker of another version is refused (FAILED_PRECONDITION); empty = not compared
  std::string bundle_digest;    // likewise
  std::string metrics_address;  // only shown
  // Makes a node's next certificate; null: without TLS. Called on the loop.
  std::function<absl::StatusOr<v1::RenewCertificate>(const std::string& node,
                                                     absl::Duration lifetime)>
      issue_certificate;
  LogStore::Limits log_limits;
  CoordinatorTunables tunables;
  // The store is broken: the process must end. Called once, on the loop; nothing is sent afterwards.
  std::function<void(absl::Status)> on_fatal;
};

// What telemetry exports; a copy, so that it can be read off the loop.
struct MetricsSnapshot {
  struct JobMetrics {
    v1::Job job;  // with progress, without ranks
    int world_size = 0;
    int64_t failures = 0;  // attempts that failed
    std::map<std::string, int64_t> failures_by_cause;
    int64_t checkpoints_committed = 0;
    std::map<std::string, int64_t> checkpoint_failures_by_reason;
    double checkpoint_stall_seconds = 0;    // of the newest
    double checkpoint_persist_seconds = 0;  // slowest rank of the newest
    int64_t checkpoint_bytes = 0;           // newest committed
    double recovery_seconds = 0;            // newest: failure seen to the next first step
    double queue_seconds = 0;               // submit to first start
    double start_seconds = 0;               // newest attempt: StartRanks to first step
    std::map<int, v1::RankReport> ranks;    // newest report of each rank
    int64_t hangs = 0;
  };
  std::vector<JobMetrics> jobs;
  std::vector<v1::Node> nodes;
  int64_t epoch = 0;
  int64_t queued_jobs = 0;
  int64_t store_commits = 0;
  int64_t store_full_errors = 0;
  int64_t stale_messages = 0;  // of an old incarnation or generation, answered or dropped
  std::map<std::string, absl::Time> certificate_expiry;  // of connected nodes; empty without TLS
  int64_t node_restarts = 0;  // a known node registered with a new incarnation
  int64_t checkpoint_copy_visits =
      0;  // how often a checkpoint's file was looked at while copies of it were made
  int64_t data_bytes_from_coordinator = 0;  // fetched by nodes
  int64_t data_bytes_from_nodes = 0;
};

class CoordinatorCore;

class Coordinator : public WorkerStreamHandler {
 public:
  // Loads the store. Errors are the store's, or INVALID_ARGUMENT for duplicate node names.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Create(CoordinatorOptions options);
  ~Coordinator() override;  // on the loop (or when it has stopped); no callback runs afterwards

  // Starts timers and launches nodes; call once, on the loop. Everything below is called on the loop.
  void Start();

  void OnMessage(std::shared_ptr<WorkerStream> stream, v1::WorkerMessage message) override;
  void OnClosed(std::shared_ptr<WorkerStream> stream, absl::Status reason) override;

  // Jobs. The spec is resolved and validated (common/spec) before. Status codes are those of jobs.proto.
  absl::StatusOr<v1::Job> Submit(const v1::SubmitRequest& request, const std::string& submitted_by);
  absl::StatusOr<v1::Job> GetJob(const std::string& job_id);
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const v1::ListJobsRequest& request);
  absl::StatusOr<v1::Job> Cancel(const v1::JobActionRequest& request);
  absl::StatusOr<v1::Job> Pause(const v1::JobActionRequest& request);
  absl::StatusOr<v1::Job> Resume(const v1::JobActionRequest& request);
  absl::StatusOr<v1::EventsResponse> ListEvents(const v1::EventsRequest& request);
  static bool HasEnded(v1::JobState state);

  // `callback` runs after every durable change of a job (state, attempt, step, reason). Wait and Watch are made of it: add,
  // then read with GetJob, then read again at each callback. May be removed from inside a callback.
  using WatchId = uint64_t;
  WatchId AddWatcher(std::function<void(const std::string& job_id)> callback);
  void RemoveWatcher(WatchId id);

  LogStore& logs();

  // Cluster.
  v1::ClusterStatus ClusterStatus();
  std::vector<v1::Node> ListNodes();
  absl::StatusOr<v1::Node> Drain(const v1::DrainRequest& request);
  absl::StatusOr<v1::Node> Undrain(const v1::DrainRequest& request);
  // Pauses running jobs (graceful: after a checkpoint), ends the workers, then calls `done`. Jobs that ran are resumed
  // at the next start from their newest checkpoint. May be called again: a call that is not graceful ends the workers without waiting for jobs that an earlier
  // one pauses, and every call's `done` runs.
  void Shutdown(bool graceful, std::function<void()> done);

  // Checkpoints. NOT_FOUND unless it is committed, bad or being deleted.
  absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const std::string& job_id);
  absl::StatusOr<v1::CheckpointInfo> GetCheckpoint(const v1::CheckpointRef& ref);
  // Where each file of the manifest can be read now (endpoints of Shards services, reachable ones only; empty with a shared
  // path: read `CheckpointInfo.location`/<job id>/step-<8 digits>/<file>).
  absl::StatusOr<std::vector<v1::FileSource>> CheckpointSources(const v1::CheckpointRef& ref);
  // Endpoint of a node's Shards service, empty while it is not connected.
  std::string ShardsEndpoint(const std::string& node);
  // A verification found that no whole copy of a file is left: later restarts use the checkpoint before it.
  absl::Status MarkCheckpointBad(const v1::CheckpointRef& ref, const std::string& reason);
  // A verification found every file whole: one that is marked bad is used again, unless its job runs (it may be writing that
  // very step).
  absl::Status MarkCheckpointGood(const v1::CheckpointRef& ref);

  // A file that a job which has not ended distributes; NOT_FOUND.
  absl::StatusOr<v1::DatasetFile> FindDatasetFile(const std::string& digest);

  MetricsSnapshot Metrics();

 private:
  explicit Coordinator(std::unique_ptr<CoordinatorCore> core);
  std::unique_ptr<CoordinatorCore> core_;
};

}  // namespace mt
