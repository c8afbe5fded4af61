// Simulated rank processes: they load, meet, step together, checkpoint, hang and die as real ones do, in virtual time.
//
// A rank's state is one 64-bit number. A step mixes every rank's number into every other's (as an all-reduce does), so the
// final numbers are right only if every attempt began from one consistent checkpoint and did each step exactly once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/random.h"
#include "common/testing/sim_event_loop.h"
#include "worker/agent/rank_host.h"

namespace mt {

uint64_t InitialState(const std::string& job_name, int rank);
// All ranks' states after one more step.
std::vector<uint64_t> NextStates(const std::vector<uint64_t>& states, int64_t step);
// What an undisturbed run of `steps` steps ends with.
std::vector<uint64_t> UndisturbedStates(const std::string& job_name, int world, int64_t steps);
std::string EncodeShard(uint64_t state, int64_t step, int rank);
absl::StatusOr<uint64_t> DecodeShard(const std::string& contents, int64_t step, int rank);

struct SimRank;

// The ranks of one generation, as they see each other over the data network.
struct SimGang {
  int world = 0;
  std::map<int, std::shared_ptr<SimRank>> joined;
  bool broken = false, pause = false, stepping = false;
  int64_t step = -1;
};

// All rank processes of the cluster.
class SimRanks {
 public:
  SimRanks(SimScheduler* scheduler, Random* random) : scheduler_(scheduler), random_(random) {}

  std::unique_ptr<RankHost> NewHost(const std::string& node, SimEventLoop* loop, Env* env);
  // The daemon's process is gone, and its ranks with it, silently.
  void KillNode(const std::string& node);
  // Faults. False if there is nobody to hit.
  bool KillRandomRank();
  bool HangRandomRank();

  // The fraction of ranks whose processes do not end after they have said that they are done.
  double hang_at_end = 0;
  // Called before each rank's process begins.
  std::function<void(const std::string& node, const RankLaunch& launch)> on_spawn;

  struct Alive {
    RankId id;
    std::string node;
    bool terminating;
  };
  std::vector<Alive> alive() const;
  // Broken invariants: a rank spawned twice, ranks that meet at different steps.
  std::vector<std::string> violations;
  // Ranks of jobs with this name prefix always die at their third step.
  static constexpr char kPoison[] = "poison";

 private:
  friend class SimRankHost;
  void Exit(const std::shared_ptr<SimRank>& rank, int code, int signal);
  void Fail(const std::shared_ptr<SimRank>& rank, absl::Status status, const std::string& blame);
  void Load(const std::shared_ptr<SimRank>& rank);
  void Loaded(const std::shared_ptr<SimRank>& rank, const std::string& path, bool may_ask);
  void Join(const std::shared_ptr<SimRank>& rank);
  void Step(const std::pair<std::string, int>& key);
  void Checkpoint(const std::shared_ptr<SimRank>& rank, bool last, bool paused);
  void Progress(const std::shared_ptr<SimRank>& rank, const std::string& phase,
                const std::string& where);
  void LaterOn(const std::shared_ptr<SimRank>& rank, absl::Duration delay,
               std::function<void()> task);
  absl::Duration Between(double low, double high) {
    return absl::Seconds(low + (high - low) * random_->Uniform());
  }
  std::vector<std::shared_ptr<SimRank>> Running() const;

  SimScheduler* const scheduler_;
  Random* const random_;
  std::map<RankId, std::shared_ptr<SimRank>> ranks_;
  std::set<RankId> ever_;
  std::map<std::pair<std::string, int>, SimGang> gangs_;
  int last_pid_ = 1000;
};

}  // namespace mt
