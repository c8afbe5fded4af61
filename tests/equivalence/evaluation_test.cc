// Evaluations: the loss of a forward pass, the same under any layout, and nothing that is trained notices them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"

namespace mt::equivalence {
namespace {

constexpr int64_t kSteps = 3;

RunOptions OptionsOf(const SmallModel& model, const Layout& layout) {
  RunOptions options{
      .spec = SmallJobOf(model), .layout = layout, .steps = kSteps, .evaluate = true};
  options.spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP64);
  options.spec.mutable_training()->set_z_loss(0);
  return options;
}

class EvaluationTest : public testing::TestWithParam<std::tuple<SmallModel, Layout>> {};

TEST_P(EvaluationTest, HasTheLossOfTheStepThatFollowsAndChangesNoBit) {
  const auto& [model, layout] = GetParam();
  RunOptions options = OptionsOf(model, layout);
  const absl::StatusOr<Outcome> with = RunJob(options);
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(with->held_out_losses, with->losses) << "the same samples, the same weights";
  options.evaluate = false;
  const absl::StatusOr<Outcome> without = RunJob(options);
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_EQ(with->losses, without->losses);
  EXPECT_EQ(with->gradient_norms, without->gradient_norms);
  EXPECT_EQ(with->auxiliary_losses, without->auxiliary_losses);
  for (size_t step = 0; step < with->expert_loads.size(); ++step) {
    EXPECT_EQ(with->expert_loads[step].load_ratio, without->expert_loads[step].load_ratio);
  }
  EXPECT_EQ(CheckSameBits(with->state, without->state), absl::OkStatus());

  const absl::StatusOr<Outcome> one = RunJob(OptionsOf(model, {}));
  ASSERT_TRUE(one.ok()) << one.status();
  for (int64_t step = 0; step < kSteps; ++step) {
    EXPECT_NEAR(with->held_out_losses[step], one->held_out_losses[step], 1e-9)
        << "layouts agree, step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EvaluationTest,
                         testing::Combine(testing::ValuesIn(AllModels()),
                                          testing::Values(Layout{}, Layout{.tensor = 2,
                                                                           .data = 2,
                                                                           .pipeline = 2,
                                                                           .sequence = true,
                                                                           .zero = true})),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::get<1>(info.param).Name();
                         });

// The z-loss is a part of what is learned, not of what is told.
TEST(Evaluation, LeavesTheZLossOut) {
  RunOptions options{.spec = SmallJob(), .steps = 1, .evaluate = true};
  options.spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP64);
  options.spec.mutable_training()->set_z_loss(0.1);
  const absl::StatusOr<Outcome> run = RunJob(options);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_LT(run->held_out_losses[0], run->losses[0]);
}

}  // namespace
}  // namespace mt::equivalence
