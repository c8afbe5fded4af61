// Datasets.Read: gives files of distributed datasets, named by their digests, to nodes. The same for the coordinator (files of its jobs)
// and for worker daemons (what is whole in their cache).
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "common/env.h"
#include "common/status.h"

namespace mt {

// One node's disk or link is full long before more streams than this; whoever comes later finds another source.
constexpr int kDatasetStreams = 4;

struct ServedFile {
  std::string path;
  int64_t bytes = -1;  // it must have; -1: any
};

// `find` gives the file with a digest, or NOT_FOUND; it is called on gRPC's threads. Answers RESOURCE_EXHAUSTED while `max_streams` are
// being read, DATA_LOSS for a file that is gone or has another size. With TLS the peer must be a node or the coordinator:
// PERMISSION_DENIED otherwise. Thread-safe.
std::unique_ptr<grpc::Service> NewDatasetsService(
    Env* env, std::function<absl::StatusOr<ServedFile>(const std::string& digest)> find,
    int max_streams = kDatasetStreams);

}  // namespace mt
