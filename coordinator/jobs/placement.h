// Which rank runs where. Ranks are in Megatron's order (tensor innermost) and nodes in hostfile order, filled one after the
// other, so a tensor group stays on one node wherever its slots allow it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/spec/mesh.h"
#include "mt/v1/jobs.pb.h"

namespace mt {

struct FreeNode {
  std::string name;
  std::vector<int> slots;  // free ones, ascending
};

// Linear in ranks and nodes. Nothing when the free slots are fewer than the ranks. First tries to give each node whole
// tensor groups only; when that does not fit, fills every slot.
std::optional<std::vector<v1::RankPlacement>> PlaceRanks(const Mesh& mesh,
                                                         const std::vector<FreeNode>& nodes);

}  // namespace mt
