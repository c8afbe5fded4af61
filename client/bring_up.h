// Starting and stopping a coordinator on this machine, for `mtctl dev` and `mtctl cluster`. The coordinator writes its
// endpoint file when it serves; it and its workers live on after mtctl.
#pragma once

#include <string>
#include <vector>

#include "client/session.h"

namespace mt::client {

struct BringUp {
  std::string context;  // "dev" or the cluster's name
  std::string state_directory;
  std::vector<std::string> arguments;  // of mt-coordinator, besides --state and --endpoint-file
  absl::Duration timeout = absl::Seconds(120);
};

// Starts the coordinator unless one of this state folder answers already, waits until every node is ready or has given a
// reason, and makes it the current context. Returns the nodes. FAILED_PRECONDITION with the log's last lines if the
// coordinator ends; DEADLINE_EXCEEDED if nodes neither come nor fail.
absl::StatusOr<v1::ListNodesResponse> StartCoordinator(Session* session, const BringUp& options);

// Asks it to end, waits until its process has; kills it if it does not. Fine if it is not running.
absl::Status StopCoordinator(Session* session, const std::string& context,
                             const std::string& state_directory, bool graceful,
                             absl::Duration timeout);

std::string EndpointPath(const std::string& state_directory);
std::string CoordinatorLog(const std::string& state_directory);

}  // namespace mt::client
