// Finding and ending every process that a rank left behind.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/time/time.h"
#include "common/status.h"

namespace mt {

// The environment variable whose value tags a rank's processes; children inherit it.
inline constexpr char kRankTagVariable[] = "MT_RANK_TAG";

// Kills (SIGKILL) the processes that carry `tag`, those of session `session` (0 = none) and all
// their descendants, reaps those that are this process's children, and repeats until none is found.
// Never touches this process. DEADLINE_EXCEEDED names what is left (a process in uninterruptible
// sleep, of another user).
absl::Status KillTree(const std::string& tag, pid_t session, absl::Duration timeout);

}  // namespace mt
