#include "worker/comm/groups.h"

#include <thread>

#include "worker/comm/communicator_suite.h"
#include "worker/comm/process_group.h"
#include "worker/comm/testing/fake_device.h"

namespace mt {
namespace {

// Ranks dealt to nodes in blocks of `per_node`.
GroupsOptions Options(const Mesh& mesh, int rank, int per_node, const std::string& transport) {
  GroupsOptions options;
  options.mesh = &mesh;
  options.rank = rank;
  options.transport = transport;
  options.job_id = "llama-1";
  options.generation = 3;
  options.timeout = absl::Seconds(60);
  for (int i = 0; i < mesh.world(); ++i) {
    v1::RankSlot slot;
    slot.set_rank(i);
    slot.set_node(absl::StrCat("node", i / per_node));
    slot.set_data_address(absl::StrCat("127.0.0.", 1 + i / per_node));
    options.rank_table.push_back(slot);
  }
  return options;
}

absl::StatusOr<RankGroups> Build(const GroupsOptions& options, Rendezvous* rendezvous) {
  RankGroups groups;
  MT_RETURN_IF_ERROR(BuildGroups(options, rendezvous, &groups));
  return groups;
}

// Each group sums what its members bring; the sum says who was in it.
absl::Status SumsAreOf(Communicator* comm, const std::vector<int>& ranks, int rank) {
  int64_t sum = int64_t{1} << (4 * rank), expected = 0;
  for (const int member : ranks) expected += int64_t{1} << (4 * member);
  MT_RETURN_IF_ERROR(comm->AllReduce(&sum, 1, MT_I64, ReduceOp::kSum));
  MT_SUITE_CHECK(sum == expected);
  MT_SUITE_CHECK(comm->size() == static_cast<int>(ranks.size()));
  return absl::OkStatus();
}

TEST(BuildGroups, JoinsTheMeshOverTheFittingTransports) {
  const Mesh mesh =
      *Mesh::Create(2, 1, 3);  // two ranks to a node: tensor groups on one node, pipelines across
  ProcessGroup group(6, [&](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const RankGroups groups, Build(Options(mesh, rank, 2, "auto"), rendezvous));
    const bool middle = mesh.CoordinatesOf(rank).pipeline == 1;
    MT_SUITE_CHECK(
        groups.transports ==
        (std::vector<std::string>{"shm", "self", "gloo", middle ? "none" : "gloo", "gloo"}));
    MT_SUITE_CHECK((groups.embedding == nullptr) == middle);
    MT_RETURN_IF_ERROR(SumsAreOf(groups.tensor.get(), mesh.TensorGroup(rank), rank));
    MT_RETURN_IF_ERROR(SumsAreOf(groups.data.get(), mesh.DataGroup(rank), rank));
    MT_RETURN_IF_ERROR(SumsAreOf(groups.pipeline.get(), mesh.PipelineGroup(rank), rank));
    if (!middle)
      MT_RETURN_IF_ERROR(SumsAreOf(groups.embedding.get(), mesh.EmbeddingGroup(rank), rank));
    return SumsAreOf(groups.model.get(), mesh.ModelGroup(rank), rank);
  });
  group.ExpectAllOk();
}

TEST(BuildGroups, GlooEverywhereIfAsked) {
  const Mesh mesh = *Mesh::Create(1, 2, 1);
  ProcessGroup group(2, [&](int rank, Rendezvous* rendezvous) -> absl::Status {
    MT_ASSIGN_OR_RETURN(const RankGroups groups, Build(Options(mesh, rank, 2, "gloo"), rendezvous));
    MT_SUITE_CHECK(groups.Describe() ==
                   "tensor: self of 1, data: gloo of 2, pipeline: self of 1, embedding: self of 1, "
                   "model: self of 1");
    return SumsAreOf(groups.data.get(), {0, 1}, rank);
  });
  group.ExpectAllOk();
}

TEST(BuildGroups, ErrorsNameTheGroupAndItsRanks) {
  const Mesh mesh = *Mesh::Create(1, 2, 1);
  SharedRendezvous rendezvous;
  GroupsOptions options = Options(mesh, 0, 2, "auto");
  options.timeout = absl::Milliseconds(50);
  const absl::Status missing = Build(options, &rendezvous).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(missing.message().find("data (ranks 0,1) group, rank 0 (member 0): join"),
            absl::string_view::npos)
      << missing;

  const absl::Status across = Build(Options(mesh, 0, 1, "shm"), &rendezvous).status();
  EXPECT_EQ(across.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(across.message().find("node0, node1"), absl::string_view::npos) << across;
  EXPECT_EQ(Build(Options(mesh, 0, 1, "carrier-pigeon"), &rendezvous).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Build(Options(mesh, 2, 1, "auto"), &rendezvous).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(BuildGroups, RanksWithDevicesUseWhatTheirBackendBrings) {
  const Mesh mesh = *Mesh::Create(1, 2, 2);
  testing::FakeMachine machine(4);
  SharedRendezvous rendezvous;
  std::vector<RankGroups> groups(4);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&, rank] {
      testing::FakeMachine::Act(rank);
      GroupsOptions options = Options(mesh, rank, 2, "nccl");
      options.device = machine.backend();
      auto built = Build(options, &rendezvous);
      ASSERT_TRUE(built.ok()) << built.status();
      groups[rank] = *std::move(built);
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(groups[0].Describe(),
            "tensor: self of 1, data: fake of 2, pipeline: fake of 2, embedding: fake of 2, "
            "model: fake of 2; fake 1.2");
  // Stages can send to each other, both at once.
  float sent[2] = {1, 2}, received[2] = {0, 0};
  for (const int rank : {0, 2}) {
    testing::FakeMachine::Act(rank);
    const int self = rank / 2, peer = 1 - self;
    ASSERT_TRUE(groups[rank].pipeline->Send(&sent[self], sizeof(float), peer).ok());
    ASSERT_TRUE(groups[rank].pipeline->Receive(&received[self], sizeof(float), peer).ok());
  }
  EXPECT_EQ(received[0], 2);
  EXPECT_EQ(received[1], 1);
}

// Two stages share three groups: what they are to each other on one node.
class TwoStages : public ::testing::Test {
 protected:
  void SetUp() override {
    OnThreads([&](int rank) {
      GroupsOptions options = Options(mesh_, rank, 2, "auto");
      options.device = machine_.backend();
      const absl::Status built = BuildGroups(options, &rendezvous_, &groups_[rank]);
      EXPECT_TRUE(built.ok()) << built;
    });
    machine_.set_ends_together(true);
  }
  void OnThreads(const std::function<void(int rank)>& body) {
    std::vector<std::thread> ranks;
    for (int rank : {0, 1}) {
      ranks.emplace_back([&, rank] {
        testing::FakeMachine::Act(rank);
        body(rank);
      });
    }
    for (std::thread& rank : ranks) rank.join();
  }

  const Mesh mesh_ = *Mesh::Create(1, 1, 2);
  SharedRendezvous rendezvous_;
  testing::FakeMachine machine_{2};
  RankGroups groups_[2];
};

// An abort that waited for its peers before the next has begun would wait for ever here.
TEST_F(TwoStages, AbortsInOppositeOrdersEnd) {
  groups_[0].Abort("rank 0 failed");
  EXPECT_EQ(groups_[0].model->Health().code(), absl::StatusCode::kAborted);
  for (Communicator* group :
       {groups_[1].model.get(), groups_[1].embedding.get(), groups_[1].pipeline.get()}) {
    group->Abort("rank 1 was told");
  }
  OnThreads([&](int rank) { groups_[rank] = {}; });
  EXPECT_EQ(machine_.aborts(), 2 * 5) << "three groups, and the pipeline's two links";
  EXPECT_EQ(machine_.misuses(), 0);
}

TEST_F(TwoStages, RanksDestroyTheirGroupsInOneOrder) {
  OnThreads([&](int rank) { const RankGroups left = std::move(groups_[rank]); });
  EXPECT_EQ(machine_.aborts(), 0);
  EXPECT_EQ(machine_.misuses(), 0);
}

TEST(BuildGroups, TransportsThatCannotReachTheMemoryAreRefused) {
  const Mesh mesh = *Mesh::Create(1, 2, 1);
  SharedRendezvous rendezvous;
  testing::FakeMachine machine(2);
  GroupsOptions device = Options(mesh, 0, 2, "shm");
  device.device = machine.backend();
  const absl::Status refused = Build(device, &rendezvous).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(refused.message().find("runtime.transport is shm, but backend fake keeps its data on "
                                   "the device"),
            absl::string_view::npos)
      << refused;
  EXPECT_EQ(Build(Options(mesh, 0, 2, "nccl"), &rendezvous).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(BuildGroups, ABackendWithoutCollectivesSaysWhy) {
  const Mesh mesh = *Mesh::Create(1, 2, 1), alone = *Mesh::Create(1, 1, 1);
  SharedRendezvous rendezvous;
  testing::FakeMachine machine(2);
  mt_backend without = *machine.backend();
  without.collectives = []() -> const mt_collectives* { return nullptr; };
  without.error_message = [] { return "libnccl.so.2 was not found"; };
  GroupsOptions options = Options(mesh, 0, 2, "auto");
  options.device = &without;
  const absl::Status status = Build(options, &rendezvous).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("libnccl.so.2 was not found"), absl::string_view::npos) << status;
  options = Options(alone, 0, 1, "auto");
  options.device = &without;
  EXPECT_TRUE(Build(options, &rendezvous).ok()) << "one rank needs none";
}

}  // namespace
}  // namespace mt
