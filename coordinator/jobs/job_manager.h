// The jobs: queue, gang start, recovery, steering. docs/spec/jobs.md draws the state machine.
//
// The logic is level-triggered: events only change rows; Settle() then looks at each touched job's rows and takes the next
// step that they call for. A coordinator that starts on stored rows therefore goes on where the last one stopped.
//
// Invariants
//  - A job's attempt ends only when every rank of it has exited or is lost (its node is down, or its daemon was replaced); the next
//    generation starts after that, so two generations never run side by side where the coordinator can reach them.
//  - All ranks of an attempt are placed in one transaction, or none.
//  - A terminal state is never left. A cancellation that was answered ends in CANCELLED.
//  - Ranks run only when every node of the attempt has told what its data is and all have told the same
//    (docs/spec/dataset-distribution.md).
//  - A job that has had a committed checkpoint never begins again from step 0 by itself.
//  - Silence is not failure: ranks on a node that is down are given up only when the job stands still or fails anyway, and
//    only while the coordinator itself can reach at least half of the cluster.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/event_loop.h"
#include "common/random.h"
#include "coordinator/jobs/checkpoint_catalogue.h"
#include "coordinator/jobs/dataset_digester.h"
#include "coordinator/jobs/log_store.h"
#include "coordinator/jobs/placement.h"
#include "coordinator/jobs/rendezvous.h"
#include "coordinator/nodes/node_table.h"
#include "coordinator/store/ledger.h"
#include "mt/v1/jobs.pb.h"

namespace mt {

// A state as people write it: "queued".
std::string StateText(v1::JobState state);

class JobManager {
 public:
  struct Metrics {
    std::map<std::string, int64_t> failures_by_cause;
    double recovery_seconds = 0, queue_seconds = 0, start_seconds = 0;
    std::map<int, v1::RankReport> ranks;
    int64_t hangs = 0;
  };

  struct Options {
    EventLoop* loop = nullptr;
    Random* random = nullptr;
    Ledger* ledger = nullptr;
    NodeTable* nodes = nullptr;
    CheckpointCatalogue* checkpoints = nullptr;
    LogStore* logs = nullptr;
    DatasetDigester* digester = nullptr;  // null: jobs cannot distribute their data
    absl::Duration down_after;
    std::vector<absl::Duration> retry_waits;  // see CoordinatorTunables; empty: none
  };
  explicit JobManager(Options options);
  ~JobManager() { *alive_ = false; }

  // Looks at every stored job; call once.
  void Start();

  absl::StatusOr<v1::Job> Submit(const v1::SubmitRequest& request, const std::string& submitted_by);
  absl::StatusOr<v1::Job> Cancel(const v1::JobActionRequest& request);
  absl::StatusOr<v1::Job> Pause(const v1::JobActionRequest& request);
  absl::StatusOr<v1::Job> Resume(const v1::JobActionRequest& request);
  absl::StatusOr<v1::Job> Get(const std::string& job_id) const;
  v1::Job Describe(const store::JobRecord& record, bool with_ranks) const;
  // Slots in use and the jobs that use them, by node.
  std::map<std::string, std::pair<int, std::set<std::string>>> Usage() const;
  const Metrics* MetricsOf(const std::string& job_id) const;
  // What nodes fetched, since this coordinator started.
  struct DataMetrics {
    int64_t bytes_from_coordinator = 0, bytes_from_nodes = 0;
  };
  const DataMetrics& data_metrics() const { return data_metrics_; }
  // A file that a job which has not ended distributes; NOT_FOUND.
  absl::StatusOr<v1::DatasetFile> FindDatasetFile(const std::string& digest) const;

  // At shutdown: no job starts any more; graceful: running ones are paused and resumed at the next start.
  absl::Status BeginShutdown(bool graceful);
  bool HasActiveJobs() const;

  // From the nodes.
  std::vector<v1::RunningRank> RanksToKeep(const std::string& node) const;
  void OnNodeSettled(const std::string& node, const std::vector<v1::RunningRank>& running);
  void OnNodeChanged(const std::string& node);
  void OnWorkerEvent(const std::string& node, const v1::WorkerEvent& event);
  void OnRendezvousPut(const std::string& node, const v1::RendezvousPut& put);
  void OnRendezvousGet(const std::string& node, const v1::RendezvousGet& get);
  // Another fate of a checkpoint, a drain: look at the job again.
  void Touch(const std::string& job_id) { touched_.insert(job_id); }
  void TouchAll();
  // Takes every step that is due.
  void Settle();

  int64_t stale_events() const { return stale_events_; }
  int64_t queued() const;

 private:
  // job_manager.cc
  const store::JobRecord* Find(const std::string& job_id) const;
  const store::AttemptRecord* Attempt(const std::string& job_id) const;  // newest, or null
  void Reconcile(const std::string& job_id);
  void WatchAttempt(const store::JobRecord& job, const store::AttemptRecord& attempt);
  void GiveUpLostRanks(const store::JobRecord& job, const store::AttemptRecord& attempt);
  void Judge(const store::JobRecord& job, const store::AttemptRecord& attempt);
  void EndAttempt(const std::string& job_id, int generation);
  // How long the next attempt still waits because this one, and maybe others before it, failed without progress.
  absl::Duration RetryWait(const store::JobRecord& job, const store::AttemptRecord& attempt);
  void AvoidCulprit(const std::string& job_id, const v1::FailureReport& failure);
  void BeginStop(const std::string& job_id, const std::string& reason);
  void AskForCheckpoint(const store::AttemptRecord& attempt);
  void SendStop(const store::AttemptRecord& attempt, const std::string& node);
  void SendStart(const store::AttemptRecord& attempt, const std::string& node);
  void End(const std::string& job_id, v1::JobState state, int exit_code, const std::string& reason);
  void SetReason(const std::string& job_id, v1::JobState state, const std::string& reason);
  bool MustMove(const store::AttemptRecord& attempt) const;
  // job_data.cc
  void OnDataChecked(const store::AttemptRecord& attempt, const std::string& node,
                     const v1::DataChecked& checked);
  void CompareData(const store::AttemptRecord& attempt);
  std::string DescribeChange(
      const store::AttemptRecord& attempt) const;  // "": the data is as it was
  void RefuseData(const store::AttemptRecord& attempt, const std::vector<std::string>& nodes,
                  const std::function<std::string(const std::string& node)>& why);
  void SendLaunch(const store::AttemptRecord& attempt, const std::string& node);
  void DigestData(const store::JobRecord& job);  // unless that is done or under way
  absl::Status DataIsDigested(const store::JobRecord& job) const;  // not OK: what it waits for
  void AddDatasets(const store::AttemptRecord& attempt, const std::string& node,
                   v1::StartRanks& start) const;
  void DescribeData(const store::JobRecord& record, v1::Job& job) const;
  // job_scheduler.cc
  void Schedule();
  absl::Status TryStart(const std::string& job_id);  // not OK: why it waits
  // A job all of whose checkpoints are bad would begin again from step 0: it is paused instead. True: it was.
  bool PauseIfAllCheckpointsAreBad(const std::string& job_id);
  std::vector<FreeNode> FreeNodes(const std::string& for_job) const;
  // Places for the next attempt: those of `last` if they are all there still, and otherwise wherever it fits, without the nodes that
  // the job avoids if it can be; none: it does not fit.
  std::optional<std::vector<v1::RankPlacement>> Place(const std::string& job_id, const Mesh& mesh,
                                                      const store::AttemptRecord* last);
  bool Avoids(const std::string& job_id, const std::string& node) const;
  bool FitsWithoutOthers(const Mesh& mesh) const;
  // job_events.cc
  void OnStepReport(const store::JobRecord& job, const v1::WorkerEvent& event);
  void OnRankExited(const store::AttemptRecord& attempt, const v1::WorkerEvent& event);
  void OnLogLines(const std::string& node, const v1::WorkerEvent& event);
  void OnFirstStep(const std::string& job_id, int64_t step);

  const Options options_;
  EventLoop* const loop_;
  Ledger* const ledger_;
  NodeTable* const nodes_;
  CheckpointCatalogue* const checkpoints_;
  Rendezvous rendezvous_;
  std::set<std::string> touched_;
  bool schedule_ = false, settling_ = false;
  bool shutting_down_ = false;
  std::set<std::tuple<std::string, int, std::string>>
      asked_to_pause_;  // job, generation, node: on its present stream
  std::map<std::string, absl::Duration> last_progress_;  // monotonic; by job
  std::map<std::string, absl::Duration> failed_at_;      // for recovery_seconds
  struct Retry {
    int generation = 0;    // of the attempt that failed
    absl::Duration until;  // monotonic
    int refusals = 0;      // starts that nodes refused, in a row
  };
  std::map<std::string, Retry> retries_;  // by job; not durable: a new coordinator waits anew
  std::map<std::pair<std::string, std::string>, absl::Duration> avoided_;  // job, node: until then
  std::map<std::string, Metrics> metrics_;
  DataMetrics data_metrics_;
  struct Digesting {
    int64_t done_bytes = 0, total_bytes = 0;
    std::shared_ptr<const void> work;  // goes on as long as this is held
  };
  std::map<std::string, Digesting> digesting_;  // by job
  std::set<std::string> log_complaints_;
  std::map<std::string, std::string> by_request_;
  int64_t stale_events_ = 0;
  std::shared_ptr<bool> alive_ =
      std::make_shared<bool>(true);  // for callbacks that outlive the manager
};

bool HasEnded(v1::JobState state);
std::set<std::string> NodesOf(const store::AttemptRecord& attempt);

}  // namespace mt
