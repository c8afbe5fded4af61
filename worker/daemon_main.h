// The worker daemon as a process: lock, credentials, servers and signals around the agent's logic.
#pragma once

#include "common/worker_command.h"

namespace mt {

// Returns the process's exit code: 0 after SIGTERM, SIGINT or a command to end; 5 when another
// daemon holds the state folder or has taken this node's place; 1 otherwise.
int DaemonMain(WorkerCommand command);

}  // namespace mt
