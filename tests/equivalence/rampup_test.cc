// Batch ramp-up: the steps are those of the schedule under every layout, and a run that is resumed in the middle has the bits of
// one that was not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/spec/batch_schedule.h"
#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"

namespace mt::equivalence {
namespace {

// Batches of 4, 4, 8, 12, 16 and then 16 again.
constexpr int64_t kSteps = 6;
constexpr Layout kAll = {.tensor = 2, .data = 2, .pipeline = 2, .sequence = true, .zero = true};

v1::JobSpec JobOf(const SmallModel& model) {
  v1::JobSpec spec = SmallJobOf(model);
  // Sequences that begin with equal tokens weigh experts equally, and which of two equal ones a full expert drops is rounding's.
  if (spec.model().has_moe()) spec.mutable_model()->mutable_moe()->set_capacity_factor(0);
  v1::TrainingSpec& training = *spec.mutable_training();
  training.set_precision(v1::TrainingSpec::PRECISION_FP64);
  training.set_global_batch(16);
  training.set_micro_batch(1);
  training.mutable_batch_rampup()->set_start(4);
  training.mutable_batch_rampup()->set_increment(4);
  training.mutable_batch_rampup()->set_samples(24);
  return spec;
}

std::vector<SmallModel> Models() {
  std::vector<SmallModel> models = AllModels();
  std::erase_if(models, [](const SmallModel& model) {
    return model.name != "mtp" && !model.name.starts_with("moe_") && model.name != "gpt_oss";
  });
  models.insert(models.begin(), {.name = "llama", .model = SmallJob().model()});
  return models;
}

class RampUpTest : public testing::TestWithParam<SmallModel> {};

TEST_P(RampUpTest, IsTheSameUnderEveryLayoutAndFollowsTheSchedule) {
  RunOptions options{.spec = JobOf(GetParam()), .steps = kSteps};
  const absl::StatusOr<Outcome> one = RunJob(options);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->position.consumed_samples, 4 + 4 + 8 + 12 + 16 + 16);
  EXPECT_EQ(one->position.consumed_samples, SamplesOfSteps(options.spec.training(), kSteps));
  const v1::MoeSpec& moe = options.spec.model().moe();
  for (size_t step = 1; moe.balance() == v1::MoeSpec::BALANCE_GLOBAL && step < kSteps; ++step) {
    // Worth the coefficient in each block where experts are used alike, however large this batch and the one before are.
    const double alike =
        moe.balance_coefficient() * static_cast<double>(options.spec.model().layers());
    EXPECT_NEAR(one->auxiliary_losses[step].at("balance"), alike, 0.3 * alike) << "step " << step;
  }
  for (const Layout& layout : {Layout{.data = 4}, Layout{.pipeline = 4}, kAll}) {
    options.layout = layout;
    const absl::StatusOr<Outcome> run = RunJob(options);
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(CheckEquivalent(*run, *one, 1e-9), absl::OkStatus()) << layout.Name();
    for (size_t step = 0; step < one->total_losses.size(); ++step)
      EXPECT_NEAR(run->total_losses[step], one->total_losses[step], 1e-9) << layout.Name();
    EXPECT_EQ(run->position.consumed_samples, one->position.consumed_samples);
  }
}

TEST_P(RampUpTest, ResumedInTheMiddleHasTheSameBits) {
  RunOptions options{.spec = JobOf(GetParam()), .layout = kAll, .backend = "cpu", .steps = kSteps};
  options.spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP32);
  const absl::StatusOr<Outcome> undisturbed = RunJob(options);
  ASSERT_TRUE(undisturbed.ok()) << undisturbed.status();
  for (const int64_t first : {1, 2, 3, 4}) {
    options.steps = first;
    options.resume = nullptr;
    options.position = {};
    const absl::StatusOr<Outcome> half = RunJob(options);
    ASSERT_TRUE(half.ok()) << half.status();
    options.steps = kSteps - first;
    options.resume = &half->state;
    options.position = half->position;
    const absl::StatusOr<Outcome> rest = RunJob(options);
    ASSERT_TRUE(rest.ok()) << rest.status();
    for (int64_t step = first; step < kSteps; ++step) {
      EXPECT_EQ(rest->losses[static_cast<size_t>(step - first)],
                undisturbed->losses[static_cast<size_t>(step)])
          << "resumed after " << first << ", step " << step;
    }
    EXPECT_EQ(rest->position.consumed_samples, undisturbed->position.consumed_samples);
    for (const auto& [name, tensor] : undisturbed->state)
      EXPECT_TRUE(rest->state.at(name).bytes == tensor.bytes) << name << " after " << first;
  }
}

// A step of the ramp is a step of a job that has such batches; all of its loss, what routers add included.
TEST_P(RampUpTest, FirstStepIsThatOfASmallJob) {
  RunOptions options{.spec = JobOf(GetParam()), .steps = 1};
  const absl::StatusOr<Outcome> ramped = RunJob(options);
  options.spec.mutable_training()->clear_batch_rampup();
  options.spec.mutable_training()->set_global_batch(4);
  const absl::StatusOr<Outcome> small = RunJob(options);
  ASSERT_TRUE(ramped.ok() && small.ok()) << ramped.status() << small.status();
  EXPECT_EQ(ramped->losses, small->losses);
  EXPECT_EQ(ramped->auxiliary_losses, small->auxiliary_losses);
  EXPECT_EQ(ramped->gradient_norms, small->gradient_norms);
  for (const auto& [name, tensor] : small->state)
    EXPECT_TRUE(ramped->state.at(name).bytes == tensor.bytes) << name;
}

INSTANTIATE_TEST_SUITE_P(Models, RampUpTest, testing::ValuesIn(Models()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mt::equivalence
