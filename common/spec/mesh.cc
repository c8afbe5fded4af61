#include "common/spec/mesh.h"

#include <algorithm>
#include <limits>

#include "common/check.h"

namespace mt {

absl::StatusOr<Mesh> Mesh::Create(int tensor, int data, int pipeline) {
  for (const auto& [name, size] :
       {std::pair("tensor", tensor), std::pair("data", data), std::pair("pipeline", pipeline)}) {
    if (size < 1)
      return absl::InvalidArgumentError(
          absl::StrCat("parallel.", name, " is ", size, "; it must be at least 1"));
  }
  const __int128 world = static_cast<__int128>(tensor) * data * pipeline;
  if (world > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("parallel: ", tensor, " × ", data, " × ", pipeline, " ranks are too many"));
  }
  return Mesh(tensor, data, pipeline);
}

MeshCoordinates Mesh::CoordinatesOf(int rank) const {
  MT_CHECK(rank >= 0 && rank < world()) << "rank " << rank << " of " << world();
  return {.tensor = rank % tensor_,
          .data = rank / tensor_ % data_,
          .pipeline = rank / (tensor_ * data_)};
}

std::vector<int> Mesh::TensorGroup(int rank) const {
  MeshCoordinates at = CoordinatesOf(rank);
  std::vector<int> ranks;
  for (at.tensor = 0; at.tensor < tensor_; ++at.tensor) ranks.push_back(RankOf(at));
  return ranks;
}

std::vector<int> Mesh::DataGroup(int rank) const {
  MeshCoordinates at = CoordinatesOf(rank);
  std::vector<int> ranks;
  for (at.data = 0; at.data < data_; ++at.data) ranks.push_back(RankOf(at));
  return ranks;
}

std::vector<int> Mesh::PipelineGroup(int rank) const {
  MeshCoordinates at = CoordinatesOf(rank);
  std::vector<int> ranks;
  for (at.pipeline = 0; at.pipeline < pipeline_; ++at.pipeline) ranks.push_back(RankOf(at));
  return ranks;
}

std::vector<int> Mesh::EmbeddingGroup(int rank) const {
  const std::vector<int> stages = PipelineGroup(rank);
  if (pipeline_ == 1) return {rank};
  return {stages.front(), stages.back()};
}

std::vector<int> Mesh::ModelGroup(int rank) const {
  MeshCoordinates at = CoordinatesOf(rank);
  std::vector<int> ranks;
  for (at.pipeline = 0; at.pipeline < pipeline_; ++at.pipeline) {
    for (at.tensor = 0; at.tensor < tensor_; ++at.tensor) ranks.push_back(RankOf(at));
  }
  return ranks;
}

std::string Mesh::ToString() const {
  return absl::StrCat("TP", tensor_, "×PP", pipeline_, "×DP", data_);
}

LayerRange LayersOfStage(int64_t layers, int stages, int stage) {
  const int64_t base = layers / stages, extra = layers % stages;
  const int64_t first = stage * base + std::min<int64_t>(stage, extra);
  return {first, first + base + (stage < extra ? 1 : 0)};
}

}  // namespace mt
