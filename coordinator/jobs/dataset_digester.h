// Sizes and digests the files of datasets that the coordinator distributes. The real one reads them on a thread of its own; the
// simulation's answers in virtual time. docs/spec/dataset-distribution.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/status.h"
#include "mt/v1/worker.pb.h"

namespace mt {

class DatasetDigester {
 public:
  virtual ~DatasetDigester() = default;
  // PREFIX.idx, PREFIX.bin and, where there is one, PREFIX.loss of each prefix. Callbacks run on the coordinator's EventLoop, never
  // inside Digest: `progress` now and then, `done` once. FAILED_PRECONDITION names the file that cannot be read, and the remedy;
  // CANCELLED: nobody holds what Digest returned any more.
  [[nodiscard]] virtual std::shared_ptr<const void> Digest(
      std::vector<std::string> prefixes,
      std::function<void(int64_t digested_bytes, int64_t total_bytes)> progress,
      std::function<void(absl::StatusOr<std::vector<v1::DatasetFile>>)> done) = 0;
};

// One job after the other; a file that has not changed since this process digested it is not read again. Destruction gives up what is
// under way; no callback runs afterwards if it happens on `loop`.
std::unique_ptr<DatasetDigester> NewDatasetDigester(EventLoop* loop, Env* env);

}  // namespace mt
