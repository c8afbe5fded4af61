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

void ExpectSameBits(const LogicalState& a, const LogicalState& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : b) {
    ASSERT_TRUE(a.contains(name)) << name;
    EXPECT_TRUE(a.at(name).bytes == tensor.bytes) << name;
  }
}

class ModelBitsTest : public testing::TestWithParam<SmallModel> {
 protected:
  static constexpr Layout kLayout = {
      .tensor = 2, .data = 2, .pipeline = 2, .sequence = true, .zero = true};
};

TEST_P(ModelBitsTest, RecomputationChangesNoBit) {
  for (const Layout& layout : {Layout{}, kLayout}) {
    RunOptions options{.spec = JobOf(GetParam(), kFloat32),
                       .layout = layout,
                       .backend = kFloat32.backend,
                       .steps = kSteps};
    const absl::StatusOr<Outcome> kept = RunJob(options);
    options.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
    const absl::StatusOr<Outcome> recomputed = RunJob(options);
    ASSERT_TRUE(kept.ok() && recomputed.ok()) << kept.status() << recomputed.status();
    EXPECT_EQ(kept->losses, recomputed->losses) << layout.Name();
    ExpectSameBits(recomputed->gradients, kept->gradients);
    ExpectSameBits(recomputed->state, kept->state);
  }
}

TEST_P(ModelBitsTest, ResumingChangesNoBit) {
  RunOptions options{.spec = JobOf(GetParam(), kFloat32),
                     .layout = kLayout,
                     .backend = kFloat32.backend,
                     .steps = 5};
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
  ExpectSameBits(rest->state, undisturbed->state);
}

INSTANTIATE_TEST_SUITE_P(Models, ModelBitsTest, testing::ValuesIn(AllModels()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mt::equivalence
