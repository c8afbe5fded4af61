// mtctl top: the cluster and its jobs, live. The frame is a pure function of what the coordinator said.
#pragma once

#include <string>
#include <vector>

#include "client/session.h"

namespace mt::client {

void AddTopCommand(CLI::App* app, Session* session);

// At most `height` lines of at most `width` characters; 0 = without a limit.
std::string TopFrame(const v1::ClusterStatus& status, const std::vector<v1::Job>& jobs,
                     absl::Time now, int width, int height);

}  // namespace mt::client
