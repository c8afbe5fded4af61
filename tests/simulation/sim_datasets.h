// Datasets in the simulated cluster: what their files hold, a digester of virtual time, and a wire between whoever has a file and
// whoever wants it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/event_loop.h"
#include "common/random.h"
#include "coordinator/jobs/dataset_digester.h"
#include "worker/agent/dataset_transport.h"

namespace mt {

// A file of a dataset; a function of its path.
std::string SimDatasetFile(const std::string& path);

class SimDigester : public DatasetDigester {
 public:
  SimDigester(EventLoop* loop, Random* random) : loop_(loop), random_(random) {}
  std::shared_ptr<const void> Digest(
      std::vector<std::string> prefixes, std::function<void(int64_t, int64_t)> progress,
      std::function<void(absl::StatusOr<std::vector<v1::DatasetFile>>)> done) override;

 private:
  EventLoop* const loop_;
  Random* const random_;
};

// Asks `source` before every piece, so that a source that dies in the middle of a file is seen.
class SimDatasetTransport : public DatasetTransport {
 public:
  // What this endpoint gives for this digest now.
  using Source = std::function<absl::StatusOr<std::string>(const std::string& endpoint,
                                                           const std::string& digest)>;
  SimDatasetTransport(EventLoop* loop, Random* random, Source source)
      : loop_(loop), random_(random), source_(std::move(source)) {}
  std::unique_ptr<DatasetStream> Read(const std::string& endpoint, const std::string& digest,
                                      int64_t offset,
                                      std::function<void(const v1::FilePiece&)> on_piece,
                                      std::function<void(absl::Status)> on_end) override;

 private:
  EventLoop* const loop_;
  Random* const random_;
  const Source source_;
};

}  // namespace mt
