// How a node reads a file of a dataset from somebody who has it. The real one (dataset_client.h) calls Datasets.Read over mTLS; the
// simulation's reads within the simulated cluster.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/status.h"
#include "mt/v1/worker.pb.h"

namespace mt {

// Destroying it ends the reading; no callback runs afterwards.
class DatasetStream {
 public:
  virtual ~DatasetStream() = default;
};

class DatasetTransport {
 public:
  virtual ~DatasetTransport() = default;
  // Reads the file with this digest from `offset` to its end. `endpoint` is a node's Datasets service; empty: the coordinator's.
  // Callbacks run on the store's EventLoop, never inside Read: pieces in order, then `on_end` once, with the codes of Datasets.Read,
  // RESOURCE_EXHAUSTED (it serves as many as it can) or those of a broken connection. Pieces wait for each other: a slow disk
  // slows the sender.
  virtual std::unique_ptr<DatasetStream> Read(const std::string& endpoint,
                                              const std::string& digest, int64_t offset,
                                              std::function<void(const v1::FilePiece&)> on_piece,
                                              std::function<void(absl::Status)> on_end) = 0;
};

}  // namespace mt
