// A whole cluster in one thread: the coordinator and the worker daemons are the real ones; machines, disks, network, rank
// processes and people are simulated. Everything that happens is a function of the seed.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/testing/mem_env.h"
#include "common/testing/sim_event_loop.h"
#include "common/testing/sim_transport.h"
#include "coordinator/coordinator.h"
#include "coordinator/store/memory_store.h"
#include "tests/simulation/sim_rank.h"
#include "worker/agent/agent.h"

namespace mt {

struct SimOptions {
  uint64_t seed = 1;
  int nodes = 100;
  int jobs = 9;
  bool node_faults = true;  // ranks, daemons, machines, single partitions, disks
  bool coordinator_faults =
      true;  // kills (also in the middle of a commit), stops, full disk, the whole network away
  bool people = true;  // cancel, pause, resume
  absl::Duration fault_time = absl::Seconds(150);
  absl::Duration limit = absl::Minutes(60);  // everything must have ended by then
  bool verbose = false;
};

class SimCluster {
 public:
  explicit SimCluster(SimOptions options);
  ~SimCluster();

  // Runs to the end of all jobs; returns what was violated (empty = nothing).
  std::vector<std::string> Run();

  int64_t steps() const { return scheduler_.steps(); }
  struct Statistics {
    int rank_kills = 0, hangs = 0, daemon_kills = 0, machine_crashes = 0, partitions = 0,
        coordinator_deaths = 0;
    int succeeded = 0, failed = 0, cancelled = 0, restarts = 0, full_disks = 0, corruptions = 0;
    int64_t data_from_coordinator = 0, data_from_nodes = 0;  // pieces
  } statistics;

 private:
  struct Node;
  struct CoordinatorProcess;
  struct JobOfPeople;
  class Launcher;
  class Fetcher;
  class DataLook;

  void StartCoordinator();
  void KillCoordinator();
  void RestartCoordinatorAfter(absl::Duration delay);
  bool StartDaemon(Node& node);
  void KillDaemon(Node& node);
  void ScheduleFaults();
  void InjectNodeFault();
  void InjectCoordinatorFault();
  void Corrupt();
  absl::StatusOr<std::string> GiveDatasetFile(const Node& reader, const std::string& endpoint,
                                              const std::string& digest);
  void CheckDataOfRank(const std::string& node, const RankLaunch& launch);
  void TamperWithCache(Node& node);
  void SubmitLater(JobOfPeople& job, absl::Duration at);
  void TrySubmit(JobOfPeople& job);
  void Act(JobOfPeople& job, const std::string& what);
  void OnJobChanged(const std::string& job_id);
  void Monitor();
  void CheckLoadable(const v1::Job& job, bool at_end);
  void CheckEnd();
  bool AllEnded();
  void Violation(const std::string& what);
  void After(absl::Duration delay, std::function<void()> task) {
    scheduler_.At(scheduler_.now() + delay, std::move(task));
  }
  double Uniform() { return random_->Uniform(); }
  int Pick(int n) { return static_cast<int>(random_->Next() % static_cast<uint64_t>(n)); }

  const SimOptions options_;
  std::unique_ptr<Random> random_;
  SimScheduler scheduler_;
  SimNetwork network_;
  SimRanks ranks_;
  MemEnv shared_;  // the shared folder, seen by all nodes under /shared
  MemEnv coordinator_env_;
  std::shared_ptr<MemoryDisk> disk_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::map<std::string, Node*> by_name_;
  std::unique_ptr<CoordinatorProcess> coordinator_;
  std::vector<std::unique_ptr<JobOfPeople>> jobs_;
  std::map<std::string, v1::JobState> terminal_;  // first durable terminal state seen
  std::map<std::string, int> newest_generation_;
  std::map<std::string, absl::Duration> overdue_;  // zombies
  std::vector<std::string> violations_;
  bool faults_over_ = false;
};

}  // namespace mt
