// Whole training steps on devices whose work happens as late as the host can tell, in memory of their own (worker/comm/testing):
// with every group a device group, a step gives the same bits as on ranks in host memory, which finish each call at once. A wait
// that is missing, of a stream for another or of the host for the device, gives other ones; a look from one memory into the other
// ends the test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"
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
    RankGroups groups;
    MT_RETURN_IF_ERROR(BuildGroups(options, rendezvous.get(), &groups));
    return groups;
  };
}

void ExpectSameBits(const Outcome& device, const Outcome& host) {
  EXPECT_EQ(device.losses, host.losses);
  EXPECT_EQ(device.gradient_norms, host.gradient_norms);
  EXPECT_EQ(device.auxiliary_losses, host.auxiliary_losses);
  EXPECT_EQ(device.held_out_losses, host.held_out_losses);
  EXPECT_EQ(CheckSameBits(device.gradients, host.gradients), absl::OkStatus());
  EXPECT_EQ(CheckSameBits(device.state, host.state), absl::OkStatus());
}

// `order`: whether the compute streams go first, or the others.
void ExpectBitsOfHostMemory(RunOptions options, const char* order) {
  const absl::StatusOr<const Backend*> backend = LoadBackend("fakedevice");
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_EQ((*backend)->abi().configure("order", order), MT_OK);
  options.backend = "reference";
  const absl::StatusOr<Outcome> host = RunJob(options);
  options.backend = "fakedevice";
  options.groups = DeviceGroups(*backend);
  const absl::StatusOr<Outcome> device = RunJob(options);
  ASSERT_TRUE(host.ok()) << host.status();
  ASSERT_TRUE(device.ok()) << device.status();
  ExpectSameBits(*device, *host);
}

class DevicesTest : public testing::TestWithParam<std::tuple<Layout, const char*>> {};

TEST_P(DevicesTest, StepsGiveTheBitsOfHostMemory) {
  const auto& [layout, order] = GetParam();
  v1::JobSpec spec = SmallJob();
  spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP32);
  spec.mutable_model()->set_tie_embeddings(layout.pipeline == 2);
  ExpectBitsOfHostMemory({.spec = spec, .layout = layout, .steps = kSteps}, order);
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

// Every trait of a model, with evaluations between the steps.
constexpr Layout kAll = {.tensor = 2, .data = 2, .pipeline = 2, .sequence = true, .zero = true};

class DeviceModelsTest : public testing::TestWithParam<std::tuple<SmallModel, Layout>> {
 protected:
  RunOptions Options() const {
    const auto& [model, layout] = GetParam();
    RunOptions options{
        .spec = SmallJobOf(model), .layout = layout, .steps = kSteps, .evaluate = true};
    options.spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_BF16);
    return options;
  }
};

TEST_P(DeviceModelsTest, StepsAndEvaluationsGiveTheBitsOfHostMemory) {
  ExpectBitsOfHostMemory(Options(), "others");
}

TEST_P(DeviceModelsTest, DocumentsAndRecomputationToo) {
  RunOptions options = Options();
  options.spec.mutable_data()->set_document_mask(true);
  options.spec.mutable_data()->set_reset_positions(true);
  options.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
  MaskedSamples samples(options.spec.model().vocab(), options.spec.data().sequence_length());
  options.samples = &samples;
  ExpectBitsOfHostMemory(options, "compute");
}

INSTANTIATE_TEST_SUITE_P(Models, DeviceModelsTest,
                         testing::Combine(testing::ValuesIn(AllModels()),
                                          testing::Values(Layout{}, kAll)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::get<1>(info.param).Name();
                         });

// A run goes on from a state that it reads into the devices' memory.
TEST(DeviceStates, ResumedRunsGiveTheBitsOfHostMemory) {
  RunOptions options{.spec = SmallJob(), .layout = {.data = 2, .zero = true}, .steps = 2};
  options.spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_BF16);
  options.backend = "reference";
  const absl::StatusOr<Outcome> half = RunJob(options);
  ASSERT_TRUE(half.ok()) << half.status();
  options.resume = &half->state;
  options.position = half->position;
  ExpectBitsOfHostMemory(options, "others");
}

}  // namespace
}  // namespace mt::equivalence
