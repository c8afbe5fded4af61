// The parallel mesh: the single truth about sizes, groups and coordinates. Rank order is Megatron's tp-cp-ep-dp-pp,
// innermost first; with cp = ep = 1:  rank = tensor + T * (data + D * pipeline).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

struct MeshCoordinates {
  int tensor = 0;
  int data = 0;
  int pipeline = 0;
  bool operator==(const MeshCoordinates&) const = default;
};

class Mesh {
 public:
  // INVALID_ARGUMENT unless all sizes are at least 1 and their product fits an int.
  static absl::StatusOr<Mesh> Create(int tensor, int data, int pipeline);
  static absl::StatusOr<Mesh> FromSpec(const v1::ParallelSpec& spec) {
    return Create(spec.tensor(), spec.data(), spec.pipeline());
  }

  int tensor() const { return tensor_; }
  int data() const { return data_; }
  int pipeline() const { return pipeline_; }
  int world() const { return tensor_ * data_ * pipeline_; }

  int RankOf(const MeshCoordinates& at) const {
    return at.tensor + tensor_ * (at.data + data_ * at.pipeline);
  }
  MeshCoordinates CoordinatesOf(int rank) const;

  // Global ranks of the group that `rank` is in, in group order; the member index is the coordinate.
  std::vector<int> TensorGroup(int rank) const;
  std::vector<int> DataGroup(int rank) const;
  std::vector<int> PipelineGroup(int rank) const;
  // First and last stage at rank's tensor and data coordinates (one element when pipeline = 1): tied embeddings meet here.
  std::vector<int> EmbeddingGroup(int rank) const;
  // Tensor x pipeline at rank's data coordinate: one model replica. The gradient norm is summed here.
  std::vector<int> ModelGroup(int rank) const;

  bool IsFirstStage(int rank) const { return CoordinatesOf(rank).pipeline == 0; }
  bool IsLastStage(int rank) const { return CoordinatesOf(rank).pipeline == pipeline_ - 1; }

  std::string ToString() const;  // "TP2×PP1×DP3"

 private:
  Mesh(int tensor, int data, int pipeline) : tensor_(tensor), data_(data), pipeline_(pipeline) {}
  int tensor_, data_, pipeline_;
};

// Decoder blocks [first, last) of pipeline stage `stage`: as even as can be, earlier stages take the remainder.
struct LayerRange {
  int64_t first = 0;
  int64_t last = 0;
};
LayerRange LayersOfStage(int64_t layers, int stages, int stage);

}  // namespace mt
