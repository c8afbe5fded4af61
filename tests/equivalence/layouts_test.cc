// The same job under every layout equals one rank: in float64 on the reference backend, where
// rounding hides nothing, and in float32 on the CPU backend.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/equivalence/harness.h"

namespace mt::equivalence {
namespace {

std::vector<Layout> AllLayouts() {
  std::vector<Layout> all;
  for (const auto& [tensor, pipeline, data] :
       {std::tuple(2, 1, 1), std::tuple(4, 1, 1), std::tuple(1, 2, 1), std::tuple(1, 4, 1),
        std::tuple(1, 1, 2), std::tuple(1, 1, 4), std::tuple(2, 2, 1), std::tuple(2, 1, 2),
        std::tuple(1, 2, 2), std::tuple(2, 2, 2)}) {
    for (const bool sequence : {false, true}) {
      for (const bool zero : {false, true}) {
        if ((sequence && tensor == 1) || (zero && data == 1)) continue;
        all.push_back({.tensor = tensor,
                       .data = data,
                       .pipeline = pipeline,
                       .sequence = sequence,
                       .zero = zero});
      }
    }
  }
  return all;
}

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

void ExpectEqual(const Outcome& run, const Outcome& expected, double tolerance) {
  ASSERT_EQ(run.losses.size(), expected.losses.size());
  ASSERT_FALSE(expected.losses.empty());
  for (size_t step = 0; step < expected.losses.size(); ++step) {
    EXPECT_NEAR(run.losses[step], expected.losses[step],
                tolerance * std::abs(expected.losses[step]))
        << "step " << step;
  }
  EXPECT_NEAR(run.gradient_norms[0], expected.gradient_norms[0],
              tolerance * expected.gradient_norms[0]);
  ASSERT_EQ(run.gradients.size(), expected.gradients.size());
  for (const auto& [name, gradient] : expected.gradients) {
    ASSERT_TRUE(run.gradients.contains(name)) << name;
    EXPECT_LE(Difference(run.gradients.at(name), gradient), tolerance) << name;
  }
  ASSERT_EQ(run.state.size(), expected.state.size());
  for (const auto& [name, tensor] : run.state) {
    ASSERT_TRUE(expected.state.contains(name)) << name;
    for (int64_t i = 0; i < tensor.Elements(); ++i) {
      ASSERT_EQ(tensor.times_written[static_cast<size_t>(i)], 1) << name << " element " << i;
    }
  }
}

class LayoutTest : public testing::TestWithParam<std::tuple<Layout, bool>> {
 protected:
  void Check(const Case& c) {
    const auto& [layout, tied] = GetParam();
    const absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(c, tied), .layout = layout, .backend = c.backend, .steps = c.steps});
    ASSERT_TRUE(run.ok()) << run.status();
    ExpectEqual(*run, OneRank(c, tied), c.tolerance);
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
