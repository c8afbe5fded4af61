// mtctl plan and mtctl submit: a spec file, checked before anything is asked of the cluster.
#pragma once

#include "client/session.h"
#include "common/spec/planner.h"

namespace mt::client {

void AddSubmitCommands(CLI::App* app, Session* session);

// Reads, overrides, resolves and validates a spec. Relative paths of data and checkpoints are taken from the working folder.
absl::StatusOr<v1::JobSpec> LoadSpec(const std::string& path,
                                     const std::vector<std::string>& overrides);
// Slots and memory of the nodes that can run something: the poorest slot's, since a rank may land on any. It is a device's where a
// job on `backend` (RuntimeSpec.backend) would run on devices, less what CUDA and its libraries need; else a share of the node's.
ClusterShape ShapeOf(const std::vector<v1::Node>& nodes, absl::string_view backend);
std::string PlanToText(const v1::JobSpec& spec, const JobPlan& plan, const ClusterShape& shape,
                       bool every_rank);
Json PlanToJson(const v1::JobSpec& spec, const JobPlan& plan);

}  // namespace mt::client
