// Whole training steps on devices whose work happens as late as the host can tell (worker/comm/testing): with every group a
// device group, a step gives the same bits as on ranks in host memory, which finish each call at once. A wait that is missing,
// of a stream for another or of the host for the device, gives other ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/equivalence/harness.h"
#include "worker/backend/backend.h"
#include "worker/comm/process_group.h"

namespace mt::equivalence {
namespace {

constexpr int64_t kSteps = 3;

// Groups between the devices of one run.
GroupFactory DeviceGroups(const Backend* backend) {
  static int runs = 0;
  auto rendezvous = std::make_shared<SharedRendezvous>();
  const std::string job = absl::StrCat("run-", ++runs);
  return [=](const Mesh& mesh, int rank) -> absl::StatusOr<RankGroups> {
    MT_RETURN_IF_ERROR(backend->ToStatus(backend->abi().open(rank, 1), "open"));
    GroupsOptions options;
    options.mesh = &mesh;
    options.rank = rank;
    options.device = &backend->abi();
    options.job_id = job;
    for (int i = 0; i < mesh.world(); ++i) {
      v1::RankSlot slot;
      slot.set_rank(i);
      slot.set_node("node0");
      options.rank_table.push_back(slot);
    }
    return BuildGroups(options, rendezvous.get());
  };
}

class DevicesTest : public testing::TestWithParam<std::tuple<Layout, const char*>> {};

TEST_P(DevicesTest, StepsGiveTheBitsOfHostMemory) {
  const auto& [layout, order] = GetParam();
  const absl::StatusOr<const Backend*> backend = LoadBackend("fakedevice");
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_EQ((*backend)->abi().configure("order", order), MT_OK);
  v1::JobSpec spec = SmallJob();
  spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP32);
  spec.mutable_model()->set_tie_embeddings(layout.pipeline == 2);
  const auto host =
      RunJob({.spec = spec, .layout = layout, .backend = "reference", .steps = kSteps});
  const auto device = RunJob({.spec = spec,
                              .layout = layout,
                              .backend = "fakedevice",
                              .steps = kSteps,
                              .groups = DeviceGroups(*backend)});
  ASSERT_TRUE(host.ok()) << host.status();
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->losses, host->losses);
  EXPECT_EQ(device->gradient_norms, host->gradient_norms);
  for (const auto& [what, states] :
       {std::pair("gradient", std::pair(&device->gradients, &host->gradients)),
        std::pair("state", std::pair(&device->state, &host->state))}) {
    ASSERT_EQ(states.first->size(), states.second->size());
    for (const auto& [name, tensor] : *states.second)
      EXPECT_EQ(states.first->at(name).bytes, tensor.bytes) << what << " " << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, DevicesTest,
    testing::Combine(testing::Values(Layout{}, Layout{.data = 2}, Layout{.data = 4, .zero = true},
                                     Layout{.tensor = 2, .sequence = true}, Layout{.pipeline = 2},
                                     Layout{.pipeline = 3},
                                     Layout{.tensor = 2, .data = 2, .pipeline = 2, .zero = true}),
                     testing::Values("compute", "others")),
    [](const auto& info) {
      return absl::StrCat(std::get<0>(info.param).Name(), "_", std::get<1>(info.param), "_first");
    });

}  // namespace
}  // namespace mt::equivalence
