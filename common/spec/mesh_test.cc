#include "common/spec/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mt {
namespace {

using testing::ElementsAre;

TEST(MeshTest, RankOrderIsMegatronsTensorDataPipeline) {
  const Mesh mesh = *Mesh::Create(/*tensor=*/2, /*data=*/3, /*pipeline=*/2);
  EXPECT_EQ(mesh.world(), 12);
  EXPECT_THAT(mesh.TensorGroup(0), ElementsAre(0, 1));
  EXPECT_THAT(mesh.DataGroup(1), ElementsAre(1, 3, 5));
  EXPECT_THAT(mesh.PipelineGroup(4), ElementsAre(4, 10));
  EXPECT_THAT(mesh.ModelGroup(2), ElementsAre(2, 3, 8, 9));
  EXPECT_THAT(mesh.EmbeddingGroup(7), ElementsAre(1, 7));
  for (int rank = 0; rank < mesh.world(); ++rank)
    EXPECT_EQ(mesh.RankOf(mesh.CoordinatesOf(rank)), rank);
}

TEST(MeshTest, SizesBelowOneAreNamed) {
  const auto mesh = Mesh::Create(1, 0, 1);
  EXPECT_EQ(mesh.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(mesh.status().message()), testing::HasSubstr("parallel.data is 0"));
}

TEST(MeshTest, StagesCoverAllLayersOnce) {
  for (int stages = 1; stages <= 5; ++stages) {
    int64_t next = 0;
    for (int stage = 0; stage < stages; ++stage) {
      const LayerRange range = LayersOfStage(13, stages, stage);
      EXPECT_EQ(range.first, next);
      EXPECT_GE(range.last - range.first, 13 / stages);
      next = range.last;
    }
    EXPECT_EQ(next, 13);
  }
}

}  // namespace
}  // namespace mt
