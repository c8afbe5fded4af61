// Brings checkpoint files from other nodes. The real one (shards_client.h) reads their Shards
// service in pieces of at most 1 MiB; the simulation's copies within the simulated cluster.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "mt/v1/checkpoint.pb.h"

namespace mt {

struct FetchRequest {
  std::string job_id;  // whose checkpoint
  int64_t step = 0;
  v1::CheckpointFile file;             // name, size and digest that must match
  std::vector<std::string> endpoints;  // Shards services that have it; tried in order
  std::string destination;  // path; written under a temporary name, synced, verified, renamed;
                            // folder exists
  std::shared_ptr<std::atomic<int64_t>> moved;  // bytes moved for it so far; null: nobody looks
};

class FileFetcher {
 public:
  virtual ~FileFetcher() = default;
  // `done` runs once, on the agent's EventLoop, never inside Fetch. A destination that is there and
  // verifies is not transferred again. DATA_LOSS: every endpoint was asked, and each has no such file or one that does not match size
  // or digest; RESOURCE_EXHAUSTED: this node's disk is full; all else (UNAVAILABLE where there is no better word): some endpoint
  // could not be asked, or what came could not be stored.
  virtual void Fetch(FetchRequest request, std::function<void(absl::Status)> done) = 0;
};

}  // namespace mt
