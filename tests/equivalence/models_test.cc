// Every kind of model under every layout equals one rank; recomputing and resuming change no bit.
#include "tests/equivalence/models.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/equivalence/harness.h"

namespace mt::equivalence {
namespace {

struct Case {
  const char* backend;
  v1::TrainingSpec::Precision precision;
  double tolerance;
};
constexpr Case kFloat64 = {"reference", v1::TrainingSpec::PRECISION_FP64, 1e-9};
constexpr Case kFloat32 = {"cpu", v1::TrainingSpec::PRECISION_FP32, 1e-5};
constexpr int64_t kSteps = 3;

v1::JobSpec JobOf(const SmallModel& model, const Case& c) {
  v1::JobSpec spec = SmallJobOf(model);
  spec.mutable_training()->set_precision(c.precision);
  return spec;
}

// One rank's run, made once.
const Outcome& OneRank(const SmallModel& model, const Case& c) {
  static std::map<std::pair<int, std::string>, Outcome> runs;
  const std::pair<int, std::string> key(c.precision, model.name);
  if (!runs.contains(key)) {
    absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(model, c), .backend = c.backend, .steps = kSteps});
    EXPECT_TRUE(run.ok()) << run.status();
    if (run.ok()) DropRounding(model, &run->gradients);
    runs[key] = run.ok() ? *std::move(run) : Outcome{};
  }
  return runs[key];
}

class ModelLayoutTest : public testing::TestWithParam<std::tuple<SmallModel, Layout>> {
 protected:
  void Check(const Case& c) {
    const auto& [model, layout] = GetParam();
    absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(model, c), .layout = layout, .backend = c.backend, .steps = kSteps});
    ASSERT_TRUE(run.ok()) << run.status();
    DropRounding(model, &run->gradients);
    EXPECT_EQ(CheckEquivalent(*run, OneRank(model, c), c.tolerance), absl::OkStatus());
  }
};

TEST_P(ModelLayoutTest, EqualsOneRankInFloat64) { Check(kFloat64); }
TEST_P(ModelLayoutTest, EqualsOneRankInFloat32) { Check(kFloat32); }

// Each kind of split once, and all of them together; the others are in the slow tier.
std::vector<Layout> FewLayouts() {
  return {{.tensor = 4},
          {.tensor = 2, .sequence = true},
          {.pipeline = 4},
          {.data = 2, .zero = true},
          {.tensor = 2, .data = 2, .pipeline = 2, .sequence = true, .zero = true}};
}
std::string NameOf(const testing::TestParamInfo<std::tuple<SmallModel, Layout>>& info) {
  return std::get<0>(info.param).name + "_" + std::get<1>(info.param).Name();
}
INSTANTIATE_TEST_SUITE_P(Few, ModelLayoutTest,
                         testing::Combine(testing::ValuesIn(AllModels()),
                                          testing::ValuesIn(FewLayouts())),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(All, ModelLayoutTest,
                         testing::Combine(testing::ValuesIn(AllModels()),
                                          testing::ValuesIn(AllLayouts())),
                         NameOf);

// In float32 and in bf16.
class ModelBitsTest
    : public testing::TestWithParam<std::tuple<SmallModel, v1::TrainingSpec::Precision>> {
 protected:
  RunOptions Options(const Layout& layout, int64_t steps) {
    const auto& [model, precision] = GetParam();
    return {.spec = JobOf(model, {"cpu", precision, 0}),
            .layout = layout,
            .backend = "cpu",
            .steps = steps};
  }
  static constexpr Layout kLayout = {
      .tensor = 2, .data = 2, .pipeline = 2, .sequence = true, .zero = true};
};

TEST_P(ModelBitsTest, RecomputationChangesNoBit) {
  for (const Layout& layout : {Layout{}, kLayout}) {
    RunOptions options = Options(layout, kSteps);
    const absl::StatusOr<Outcome> kept = RunJob(options);
    options.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
    const absl::StatusOr<Outcome> recomputed = RunJob(options);
    ASSERT_TRUE(kept.ok() && recomputed.ok()) << kept.status() << recomputed.status();
    EXPECT_EQ(kept->losses, recomputed->losses) << layout.Name();
    EXPECT_EQ(CheckSameBits(recomputed->gradients, kept->gradients), absl::OkStatus());
    EXPECT_EQ(CheckSameBits(recomputed->state, kept->state), absl::OkStatus());
  }
}

TEST_P(ModelBitsTest, ResumingChangesNoBit) {
  RunOptions options = Options(kLayout, 5);
  const absl::StatusOr<Outcome> undisturbed = RunJob(options);
  options.steps = 2;
  const absl::StatusOr<Outcome> half = RunJob(options);
  ASSERT_TRUE(undisturbed.ok() && half.ok()) << undisturbed.status() << half.status();
  options.steps = 3;
  options.resume = &half->state;
  options.position = half->position;
  const absl::StatusOr<Outcome> rest = RunJob(options);
  ASSERT_TRUE(rest.ok()) << rest.status();
  for (size_t step = 0; step < 3; ++step)
    EXPECT_EQ(rest->losses[step], undisturbed->losses[step + 2]) << "step " << step + 2;
  EXPECT_EQ(CheckSameBits(rest->state, undisturbed->state), absl::OkStatus());
}

// What bf16 rounds, and what a layout sums in another order, hardly shows in the loss.
TEST_P(ModelBitsTest, LossIsThatOfFloat32AsFarAsTheTypeGoes) {
  const absl::StatusOr<Outcome> run = RunJob(Options(kLayout, kSteps));
  ASSERT_TRUE(run.ok()) << run.status();
  const Outcome& one = OneRank(std::get<0>(GetParam()), kFloat32);
  ASSERT_EQ(run->losses.size(), one.losses.size());
  for (size_t step = 0; step < one.losses.size(); ++step)
    EXPECT_NEAR(run->losses[step], one.losses[step], 0.01 * one.losses[step]) << "step " << step;
}

INSTANTIATE_TEST_SUITE_P(Models, ModelBitsTest,
                         testing::Combine(testing::ValuesIn(AllModels()),
                                          testing::Values(v1::TrainingSpec::PRECISION_FP32,
                                                          v1::TrainingSpec::PRECISION_BF16)),
                         [](const auto& info) {
                           const bool narrow =
                               std::get<1>(info.param) == v1::TrainingSpec::PRECISION_BF16;
                           return std::get<0>(info.param).name + (narrow ? "_bf16" : "_fp32");
                         });

}  // namespace
}  // namespace mt::equivalence
