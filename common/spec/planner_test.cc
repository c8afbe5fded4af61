#include "common/spec/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/spec/defaults.h"
#include "common/spec/parameters.h"
#include "common/spec/validate.h"

namespace mt {
namespace {

using testing::HasSubstr;

v1::JobSpec Spec(int tensor, int pipeline, int data) {
  v1::JobSpec spec;
  spec.set_name("tiny");
  auto* m = spec.mutable_model();
  m->set_layers(5);
  m->set_hidden(64);
  m->set_heads(8);
  m->set_kv_heads(4);
  m->set_ffn(128);
  spec.mutable_data()->add_train()->set_prefix("/data/a");
  spec.mutable_data()->set_tokenizer("byte");
  spec.mutable_data()->set_sequence_length(64);
  spec.mutable_training()->set_steps(100);
  spec.mutable_training()->set_global_batch(16);
  spec.mutable_parallel()->set_tensor(tensor);
  spec.mutable_parallel()->set_pipeline(pipeline);
  spec.mutable_parallel()->set_data(data);
  EXPECT_TRUE(FillDefaults(&spec).ok());
  return spec;
}

TEST(PlanJob, EveryRankHasMegatronsCoordinatesAndItsStagesBlocks) {
  const auto plan = PlanJob(Spec(2, 2, 2));
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->ranks.size(), 8u);
  EXPECT_EQ(plan->ranks[1].at, (MeshCoordinates{.tensor = 1, .data = 0, .pipeline = 0}));
  EXPECT_EQ(plan->ranks[2].at, (MeshCoordinates{.tensor = 0, .data = 1, .pipeline = 0}));
  EXPECT_EQ(plan->ranks[4].at, (MeshCoordinates{.tensor = 0, .data = 0, .pipeline = 1}));
  EXPECT_EQ(plan->ranks[0].layers.last, 3);
  EXPECT_EQ(plan->ranks[7].layers.first, 3);
  EXPECT_EQ(plan->micro_batches, 8);
  EXPECT_DOUBLE_EQ(plan->bubble, 1.0 / 9);
}

TEST(PlanJob, ARampUpMakesTheRunShorterAndNoStepLarger) {
  v1::JobSpec spec = Spec(1, 1, 2);
  const auto whole = PlanJob(spec);
  v1::BatchRampup* rampup = spec.mutable_training()->mutable_batch_rampup();
  rampup->set_start(4);
  rampup->set_increment(4);
  rampup->set_samples(240);  // 20 steps of 4, 10 of 8, 7 of 12
  const auto ramped = PlanJob(spec);
  ASSERT_TRUE(whole.ok() && ramped.ok()) << ramped.status();
  EXPECT_EQ(whole->whole_steps, 100);
  EXPECT_DOUBLE_EQ(ramped->whole_steps, (20 * 4 + 10 * 8 + 7 * 12 + 63 * 16) / 16.0);
  EXPECT_EQ(ramped->tokens_per_step, whole->tokens_per_step);
  EXPECT_EQ(ramped->largest_rank_bytes, whole->largest_rank_bytes);
}

TEST(PlanJob, TheModelIsHeldOnceByEveryReplica) {
  const auto one = PlanJob(Spec(1, 1, 1));
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->ranks[0].parameters, one->parameters);
  const auto stages = PlanJob(Spec(1, 5, 1));
  ASSERT_TRUE(stages.ok());
  int64_t held = 0;
  for (const RankPlan& rank : stages->ranks) held += rank.parameters;
  EXPECT_EQ(held, one->parameters);
  const auto tensor = PlanJob(Spec(4, 1, 1));
  ASSERT_TRUE(tensor.ok());
  EXPECT_LT(tensor->ranks[0].parameters, one->parameters / 3);
  EXPECT_GE(tensor->ranks[0].parameters * 4, one->parameters);
}

TEST(PlanJob, MemoryIsByKindAndShardingCutsIt) {
  const auto one = PlanJob(Spec(1, 1, 1)), data = PlanJob(Spec(1, 1, 2)),
             tensor = PlanJob(Spec(2, 1, 1));
  ASSERT_TRUE(one.ok() && data.ok() && tensor.ok());
  const RankMemory& whole = one->ranks[0].bytes;
  EXPECT_GE(whole.weights, one->parameters * 4);
  EXPECT_GE(whole.gradients, one->parameters * 4);
  EXPECT_GE(whole.optimizer, one->parameters * 8);
  EXPECT_GT(whole.activations, 0);
  EXPECT_LT(data->ranks[0].bytes.optimizer, whole.optimizer * 6 / 10) << "ZeRO-1 shards the states";
  EXPECT_LT(tensor->ranks[0].bytes.weights, whole.weights * 6 / 10);
}

TEST(PlanJob, StepTimeIsFlopsOverPeakWithTheBubble) {
  const auto plan = PlanJob(Spec(1, 2, 1), {.peak_flops_per_slot = 1e9});
  ASSERT_TRUE(plan.ok());
  EXPECT_NEAR(plan->step_seconds, plan->flops_per_step / 2e9 / (1 - 1.0 / 17), 1e-9);
  EXPECT_EQ(plan->tokens_per_step, 16 * 64);
  EXPECT_EQ(PlanJob(Spec(1, 2, 1))->step_seconds, 0);
}

TEST(CheckFits, MoreRanksThanSlotsNamesTheNearestLayouts) {
  EXPECT_TRUE(CheckFits(Spec(2, 1, 2), {.slots = 4}).ok());
  const absl::Status status = CheckFits(Spec(2, 2, 2), {.slots = 4});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(
      status.message(),
      HasSubstr("parallel = tensor 2 × pipeline 2 × data 2: needs 8 slots and the cluster has 4"));
  EXPECT_THAT(status.message(),
              HasSubstr("nearest layouts that fit: tensor 2 × pipeline 1 × data 2; "))
      << "of equally near ones the one without a bubble is first";
}

TEST(CheckFits, TooLittleMemoryIsRefusedByRankAndSize) {
  const auto one = PlanJob(Spec(1, 1, 1)), two = PlanJob(Spec(2, 1, 1));
  ASSERT_TRUE(one.ok() && two.ok());
  const ClusterShape shape{
      .slots = 2, .memory_per_slot_bytes = (one->largest_rank_bytes + two->largest_rank_bytes) / 2};
  const absl::Status status = CheckFits(Spec(1, 1, 1), shape);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("rank 0 needs"));
  EXPECT_THAT(status.message(), HasSubstr("tensor 2 × pipeline 1 × data 1"));
  EXPECT_THAT(CheckFits(Spec(1, 1, 1), {.slots = 1, .memory_per_slot_bytes = 1000}).message(),
              HasSubstr("no layout of this job fits"));
}

TEST(CheckFits, SnapshotsLieInTheHostsMemory) {
  const v1::JobSpec spec = Spec(1, 1, 2);
  const auto plan = PlanJob(spec);
  ASSERT_TRUE(plan.ok());
  const int64_t snapshot = plan->ranks[0].bytes.snapshot, total = plan->largest_rank_bytes;
  // Weights and both moments in float32; each data rank saves a half of them.
  EXPECT_NEAR(static_cast<double>(snapshot), 6.0 * static_cast<double>(plan->parameters),
              0.01 * 6 * static_cast<double>(plan->parameters));
  EXPECT_EQ(total, plan->ranks[0].bytes.Total());
  ClusterShape host{.slots = 2, .memory_per_slot_bytes = total, .computes_on_hosts = true};
  EXPECT_THAT(CheckFits(spec, host).message(), HasSubstr("rank 0 needs"));
  host.memory_per_slot_bytes = total + snapshot;
  EXPECT_TRUE(CheckFits(spec, host).ok());
  ClusterShape device{
      .slots = 2, .memory_per_slot_bytes = total, .host_memory_per_slot_bytes = snapshot};
  EXPECT_TRUE(CheckFits(spec, device).ok());
  device.host_memory_per_slot_bytes = snapshot - 1;
  EXPECT_THAT(CheckFits(spec, device).message(), HasSubstr("of it in its host's memory"));
}

TEST(NearestLayouts, KnowEverySizeThatATensorGroupShares) {
  v1::JobSpec spec = Spec(1, 1, 1);
  spec.mutable_model()->mutable_moe()->set_experts(4);
  spec.mutable_model()->mutable_moe()->set_ffn(34);  // two halves, no quarters
  ASSERT_TRUE(FillDefaults(&spec).ok());
  const auto layouts = NearestLayouts(spec, {}, 4, 100);
  ASSERT_FALSE(layouts.empty());
  for (const auto& layout : layouts) EXPECT_LE(layout.tensor(), 2) << LayoutToString(layout);
}

TEST(PlanJob, ExpertsThatATokenDoesNotMeetAreNotActive) {
  v1::JobSpec spec = Spec(1, 1, 1);
  const int64_t dense = PlanJob(spec)->active_parameters;
  EXPECT_EQ(dense, PlanJob(spec)->parameters);
  spec.mutable_model()->mutable_moe()->set_experts(4);
  spec.mutable_model()->mutable_moe()->set_top_k(1);
  ASSERT_TRUE(FillDefaults(&spec).ok());
  const auto plan = PlanJob(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const int64_t router = 5 * 4 * 64, expert = 3 * 64 * 128;
  EXPECT_EQ(plan->active_parameters, dense + router) << "one expert of the dense width";
  EXPECT_EQ(plan->parameters, dense + router + 5 * 3 * expert);
}

TEST(NearestLayouts, DivideFitAndAreNearestFirst) {
  const v1::JobSpec spec = Spec(2, 1, 4);
  const auto layouts = NearestLayouts(spec, {}, 6, 4);
  ASSERT_FALSE(layouts.empty());
  for (const auto& layout : layouts) {
    v1::JobSpec other = spec;
    *other.mutable_parallel() = layout;
    EXPECT_TRUE(ValidateSpec(other).ok()) << LayoutToString(layout);
    // 16 sequences do not divide by 3, and 4 key/value heads neither: five stages, or fewer ranks.
    EXPECT_LE(layout.tensor() * layout.pipeline() * layout.data(), 6);
  }
  EXPECT_THAT(NearestLayouts(spec, {.memory_per_slot_bytes = 10}, 8), testing::IsEmpty());
}

}  // namespace
}  // namespace mt
