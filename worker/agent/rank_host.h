// How the daemon's logic reaches rank processes. The real one (process_host.h) forks and execs; the
// simulation's are objects in virtual time. One rank is named by job, generation and number: a name
// is spawned at most once.
//
// Invariants: callbacks run on the agent's EventLoop, never inside a call of the host; for one rank
// they come in order: messages and output as they were written, then OnExited once, when the rank
// and every process it left behind are gone and all of its output has been delivered. After Spawn
// returned an error there are no callbacks.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "common/status.h"
#include "mt/v1/rank.pb.h"

namespace mt {

struct RankId {
  std::string job_id;
  int32_t generation = 0;
  int32_t rank = 0;

  auto operator<=>(const RankId&) const = default;
  bool operator==(const RankId&) const = default;
  std::string ToString() const { return absl::StrCat(job_id, "/", generation, "/rank-", rank); }
};

struct RankExit {
  int exit_code = 0;                    // -1 if it ended by a signal
  int signal = 0;                       // 0 if it exited
  std::vector<std::string> last_lines;  // at most 40, oldest first, of both outputs
};

class RankHandler {
 public:
  virtual ~RankHandler() = default;
  virtual void OnRankMessage(const RankId& id, v1::FromRank message) = 0;
  // Whole lines (or 64 KiB without a line end); `offset` is where they begin in the rank's log
  // file.
  virtual void OnRankOutput(const RankId& id, std::string data, bool is_stderr, int64_t offset) = 0;
  virtual void OnRankExited(const RankId& id, RankExit exit) = 0;
};

struct RankLaunch {
  RankId id;
  v1::RankStart start;   // the first message that the rank reads
  std::string log_path;  // its output is appended here; the folder exists
};

enum class RankSignal { kTerminate, kKill };  // SIGTERM to the rank; SIGKILL to its whole tree

class RankHost {
 public:
  virtual ~RankHost() = default;
  // Must be called once, before Spawn. `handler` outlives the host's last callback.
  virtual void SetHandler(RankHandler* handler) = 0;
  // Returns the process id. RESOURCE_EXHAUSTED: no process or descriptor can be had.
  virtual absl::StatusOr<int32_t> Spawn(RankLaunch launch) = 0;
  // Ranks that have ended are ignored by both.
  virtual void Send(const RankId& id, v1::ToRank message) = 0;
  virtual void Signal(const RankId& id, RankSignal signal) = 0;
  // Ends what an earlier incarnation of the daemon may have left of this rank; returns when it is
  // gone.
  virtual void Sweep(const RankId& id, int32_t pid) = 0;
};

}  // namespace mt
