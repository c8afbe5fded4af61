#include "worker/train/same_arithmetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/comm/process_group.h"

namespace mt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kPrefix[] = "llama-1/3";

// Ranks dealt to nodes in blocks of `per_node`.
TensorGroupPlace Place(const Mesh& mesh, int rank, int per_node) {
  TensorGroupPlace place{.mesh = &mesh, .rank = rank};
  for (int i = 0; i < mesh.world(); ++i) {
    v1::RankSlot slot;
    slot.set_rank(i);
    slot.set_node(absl::StrCat("node", i / per_node));
    place.rank_table.push_back(slot);
  }
  return place;
}

TEST(SameArithmetic, ATensorGroupSpansNodesIfAnyOfItsRanksIsElsewhere) {
  const Mesh mesh = *Mesh::Create(4, 2, 1);
  for (const int rank : {0, 3, 7}) {
    EXPECT_FALSE(TensorGroupSpansNodes(Place(mesh, rank, 8)));
    EXPECT_FALSE(TensorGroupSpansNodes(Place(mesh, rank, 4))) << "only the data group does";
    EXPECT_TRUE(TensorGroupSpansNodes(Place(mesh, rank, 2)));
  }
  // Ranks 0 to 2 on the first node: of the second group, 4 to 7, only the last two are together.
  EXPECT_TRUE(TensorGroupSpansNodes(Place(mesh, 0, 3)));
  EXPECT_TRUE(TensorGroupSpansNodes(Place(mesh, 4, 3)));
  EXPECT_FALSE(TensorGroupSpansNodes(Place(*Mesh::Create(1, 4, 2), 5, 1)));
}

TEST(SameArithmetic, OnlyATensorGroupOnOneNodeRemembersWhatWasFastest) {
  const Mesh mesh = *Mesh::Create(2, 2, 1);
  EXPECT_EQ(GemmCacheOf(Place(mesh, 3, 2), "/checkpoints"), "/checkpoints/gemm-algorithms");
  EXPECT_EQ(GemmCacheOf(Place(mesh, 3, 1), "/checkpoints"), "");
}

TEST(SameArithmetic, RanksThatComputeWithTheSameGoOn) {
  const Mesh mesh = *Mesh::Create(2, 1, 1);
  SharedRendezvous rendezvous;
  for (const int rank : {0, 1}) {
    EXPECT_EQ(CheckSameArithmetic(Place(mesh, rank, 1), "cuda 1: H100, cuBLASLt 13.1.0", kPrefix,
                                  absl::ZeroDuration(), &rendezvous),
              absl::OkStatus());
  }
}

TEST(SameArithmetic, ADifferenceIsRefusedWithBothRanksNodesAndWhatTheyComputeWith) {
  const Mesh mesh = *Mesh::Create(2, 2, 1);
  SharedRendezvous rendezvous;
  const auto check = [&](int rank, const std::string& mine) {
    TensorGroupPlace place = Place(mesh, rank, 1);
    return CheckSameArithmetic(place, mine, kPrefix, absl::ZeroDuration(), &rendezvous);
  };
  // Another group may compute with something else.
  EXPECT_EQ(check(0, "cuBLASLt 13.0.0"), absl::OkStatus());
  EXPECT_EQ(check(2, "cuBLASLt 13.1.0"), absl::OkStatus());
  EXPECT_EQ(check(1, "cuBLASLt 13.0.0"), absl::OkStatus());
  const absl::Status refused = check(3, "cuBLASLt 13.2.0");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr("rank 3 on node node3 computes with \"cuBLASLt 13.2.0\""),
                    HasSubstr("rank 2 on node node2, of the same tensor group, with "
                              "\"cuBLASLt 13.1.0\""),
                    HasSubstr("parallel.tensor")));
}

TEST(SameArithmetic, OnOneNodeNobodyIsAsked) {
  const Mesh mesh = *Mesh::Create(2, 1, 1);
  SharedRendezvous rendezvous;
  EXPECT_EQ(CheckSameArithmetic(Place(mesh, 1, 2), "anything", kPrefix, absl::ZeroDuration(),
                                &rendezvous),
            absl::OkStatus());
  EXPECT_EQ(
      CheckSameArithmetic(Place(mesh, 1, 1), "anything", kPrefix, absl::ZeroDuration(), &rendezvous)
          .code(),
      absl::StatusCode::kDeadlineExceeded);
}

TEST(SameArithmetic, IsToldByDeviceDriverAndLibraries) {
  mt_backend abi = {};
  abi.name = "cuda";
  abi.version = "1";
  mt_device_info info = {};
  std::snprintf(info.name, sizeof info.name, "NVIDIA H100");
  std::snprintf(info.detail, sizeof info.detail, "driver 13.0, cuBLASLt 13.1.0");
  EXPECT_EQ(ArithmeticOf(Backend(&abi, info, "")),
            "cuda 1: NVIDIA H100, driver 13.0, cuBLASLt 13.1.0");
}

}  // namespace
}  // namespace mt
