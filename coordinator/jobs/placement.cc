#include "coordinator/jobs/placement.h"

namespace mt {
namespace {

std::optional<std::vector<v1::RankPlacement>> Fill(const Mesh& mesh,
                                                   const std::vector<FreeNode>& nodes,
                                                   size_t group) {
  std::vector<v1::RankPlacement> ranks;
  ranks.reserve(mesh.world());
  for (const FreeNode& node : nodes) {
    const size_t usable = node.slots.size() / group * group;
    for (size_t i = 0; i < usable; ++i) {
      const int rank = static_cast<int>(ranks.size());
      if (rank == mesh.world()) return ranks;
      const MeshCoordinates at = mesh.CoordinatesOf(rank);
      v1::RankPlacement& placement = ranks.emplace_back();
      placement.set_rank(rank);
      placement.set_node(node.name);
      placement.set_slot(node.slots[i]);
      placement.set_tensor(at.tensor);
      placement.set_data(at.data);
      placement.set_pipeline(at.pipeline);
    }
  }
  if (static_cast<int>(ranks.size()) < mesh.world()) return std::nullopt;
  return ranks;
}

}  // namespace

std::optional<std::vector<v1::RankPlacement>> PlaceRanks(const Mesh& mesh,
                                                         const std::vector<FreeNode>& nodes) {
  auto ranks = Fill(mesh, nodes, mesh.tensor());
  if (!ranks.has_value() && mesh.tensor() > 1) ranks = Fill(mesh, nodes, 1);
  return ranks;
}

}  // namespace mt
