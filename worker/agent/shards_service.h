// Serves this node's checkpoint files to other nodes and to the coordinator, in pieces of at most 1
// MiB.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "common/env.h"

namespace mt {

// Only whole files below `root` (<root>/<job>/step-<8 digits>/<file>) are served, by validated
// names, never through links. With TLS the peer must be a node or the coordinator:
// PERMISSION_DENIED otherwise. Thread-safe.
std::unique_ptr<grpc::Service> NewShardsService(Env* env, std::string root);

}  // namespace mt
