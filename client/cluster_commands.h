// mtctl dev up|down, cluster up|status|down, nodes, drain, undrain.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddClusterCommands(CLI::App* app, Session* session);
Table NodesTable(const std::vector<v1::Node>& nodes, absl::Time now);

}  // namespace mt::client
