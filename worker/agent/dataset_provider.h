// Brings the files of distributed datasets onto this node. The real one (dataset_store.h) keeps them in a cache; tests of the agent
// answer at once. docs/spec/dataset-distribution.md tells the whole way.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common/status.h"
#include "mt/v1/worker.pb.h"

namespace mt {

struct DatasetRequest {
  std::string job_id;
  int32_t generation = 0;
  std::vector<v1::DatasetFile> files;
  std::vector<std::string> endpoints;  // Datasets services of nodes that may have them
};

struct ProvidedDatasets {
  std::map<std::string, std::string> local_prefix;  // of each prefix of the job's spec
  int64_t bytes_fetched = 0;                        // what the cache lacked
  int64_t bytes_from_nodes = 0;                     // of those: not from the coordinator
};

// All methods are called on the agent's EventLoop and never block it.
class DatasetProvider {
 public:
  virtual ~DatasetProvider() = default;
  // `done` runs once, on the agent's EventLoop, never inside Provide; not at all after Release. The files stay until Release.
  // FAILED_PRECONDITION: more than the cache may hold. DATA_LOSS: no source has what the digests say. INVALID_ARGUMENT: names or
  // digests that are none. What is merely away, and room that is taken for now, is waited for.
  virtual void Provide(DatasetRequest request,
                       std::function<void(absl::StatusOr<ProvidedDatasets>)> done) = 0;
  // Fetches for this attempt end, its files may be evicted. Idempotent.
  virtual void Release(const std::string& job_id, int32_t generation) = 0;
  // Of attempts whose files are on their way.
  virtual std::vector<v1::DataFetch> Progress() const = 0;
  virtual int64_t CachedBytes() const = 0;
  virtual int64_t LimitBytes() const = 0;
};

}  // namespace mt
