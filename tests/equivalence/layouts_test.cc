// The same job under every layout equals one rank: in float64 on the reference backend, where
// rounding hides nothing, and in float32 on the CPU backend.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/equivalence/harness.h"

namespace mt::equivalence {
namespace {

struct Case {
  const char* backend;
  v1::TrainingSpec::Precision precision;
  int64_t steps;
  double tolerance;
};
constexpr Case kFloat64 = {"reference", v1::TrainingSpec::PRECISION_FP64, 20, 1e-9};
constexpr Case kFloat32 = {"cpu", v1::TrainingSpec::PRECISION_FP32, 5, 1e-5};

v1::JobSpec JobOf(const Case& c, bool tied) {
  v1::JobSpec spec = SmallJob();
  spec.mutable_training()->set_precision(c.precision);
  spec.mutable_model()->set_tie_embeddings(tied);
  return spec;
}

// One rank's run, made once.
const Outcome& OneRank(const Case& c, bool tied) {
  static std::map<std::pair<std::string, bool>, Outcome> runs;
  const auto key = std::pair(std::string(c.backend), tied);
  if (!runs.contains(key)) {
    absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(c, tied), .backend = c.backend, .steps = c.steps});
    EXPECT_TRUE(run.ok()) << run.status();
    runs[key] = run.ok() ? *std::move(run) : Outcome{};
  }
  return runs[key];
}

class LayoutTest : public testing::TestWithParam<std::tuple<Layout, bool>> {
 protected:
  void Check(const Case& c) {
    const auto& [layout, tied] = GetParam();
    const absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(c, tied), .layout = layout, .backend = c.backend, .steps = c.steps});
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(CheckEquivalent(*run, OneRank(c, tied), c.tolerance), absl::OkStatus());
  }
};

TEST_P(LayoutTest, EqualsOneRankInFloat64) { Check(kFloat64); }
TEST_P(LayoutTest, EqualsOneRankInFloat32) { Check(kFloat32); }

INSTANTIATE_TEST_SUITE_P(Layouts, LayoutTest,
                         testing::Combine(testing::ValuesIn(AllLayouts()), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param).Name() +
                                  (std::get<1>(info.param) ? "_tied" : "");
                         });

TEST(OneRankTest, LearnsItsFewSamples) {
  const Outcome& run = OneRank(kFloat64, false);
  EXPECT_LT(run.losses.back(), 0.8 * run.losses.front());
}

}  // namespace
}  // namespace mt::equivalence
