#include "worker/comm/groups.h"

#include "worker/comm/communicator_suite.h"
#include "worker/comm/process_group.h"

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
    MT_ASSIGN_OR_RETURN(const RankGroups groups,
                        BuildGroups(Options(mesh, rank, 2, "auto"), rendezvous));
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
    MT_ASSIGN_OR_RETURN(const RankGroups groups,
                        BuildGroups(Options(mesh, rank, 2, "gloo"), rendezvous));
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
  const absl::Status missing = BuildGroups(options, &rendezvous).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(missing.message().find("data (ranks 0,1) group, rank 0 (member 0): join"),
            absl::string_view::npos)
      << missing;

  const absl::Status across = BuildGroups(Options(mesh, 0, 1, "shm"), &rendezvous).status();
  EXPECT_EQ(across.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(across.message().find("node0, node1"), absl::string_view::npos) << across;
  EXPECT_EQ(BuildGroups(Options(mesh, 0, 1, "carrier-pigeon"), &rendezvous).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(BuildGroups(Options(mesh, 2, 1, "auto"), &rendezvous).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mt
