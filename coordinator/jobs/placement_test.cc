#include "coordinator/jobs/placement.h"

#include <gtest/gtest.h>

namespace mt {
namespace {

std::string Show(const std::optional<std::vector<v1::RankPlacement>>& ranks) {
  if (!ranks) return "none";
  std::string text;
  for (const auto& rank : *ranks)
    absl::StrAppend(&text, text.empty() ? "" : " ", rank.node(), ":", rank.slot());
  return text;
}

Mesh MakeMesh(int tensor, int data, int pipeline) {
  return Mesh::Create(tensor, data, pipeline).value();
}

TEST(PlacementTest, FillsNodesInHostfileOrder) {
  EXPECT_EQ(Show(PlaceRanks(MakeMesh(1, 3, 1), {{"b", {0, 1}}, {"a", {0, 1}}})), "b:0 b:1 a:0");
}

TEST(PlacementTest, TensorGroupsStayOnOneNodeWhenTheyCan) {
  EXPECT_EQ(Show(PlaceRanks(MakeMesh(2, 2, 1), {{"a", {0, 1, 2}}, {"b", {1, 3}}})),
            "a:0 a:1 b:1 b:3");
  // Only by splitting a group does it fit: better than not at all.
  EXPECT_EQ(Show(PlaceRanks(MakeMesh(2, 2, 1), {{"a", {0, 1, 2}}, {"b", {1}}})), "a:0 a:1 a:2 b:1");
}

TEST(PlacementTest, AllOrNothing) {
  EXPECT_EQ(Show(PlaceRanks(MakeMesh(2, 2, 1), {{"a", {0, 1, 2}}})), "none");
  EXPECT_EQ(Show(PlaceRanks(MakeMesh(1, 1, 1), {})), "none");
}

TEST(PlacementTest, CoordinatesAreMegatrons) {
  const auto ranks = PlaceRanks(MakeMesh(2, 2, 2), {{"a", {0, 1, 2, 3, 4, 5, 6, 7}}});
  ASSERT_TRUE(ranks.has_value());
  EXPECT_EQ((*ranks)[6].tensor(), 0);
  EXPECT_EQ((*ranks)[6].data(), 1);
  EXPECT_EQ((*ranks)[6].pipeline(), 1);
}

}  // namespace
}  // namespace mt
