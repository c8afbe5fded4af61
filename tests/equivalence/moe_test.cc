// Models with experts: the losses, loads and drops that a step reports are those of one rank under every layout, and are what
// their formulas say. Gradients and bits: models_test.cc and gradients_test.cc, with the other models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "common/spec/model_traits.h"
#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"

namespace mt::equivalence {
namespace {

struct Case {
  const char* backend;
  v1::TrainingSpec::Precision precision;
  int64_t steps;
  double tolerance;
};
constexpr Case kFloat64 = {"reference", v1::TrainingSpec::PRECISION_FP64, 3, 1e-9};
constexpr Case kFloat32 = {"cpu", v1::TrainingSpec::PRECISION_FP32, 2, 1e-5};

std::vector<SmallModel> ModelsWithExperts() {
  std::vector<SmallModel> models;
  for (SmallModel& model : AllModels()) {
    if (model.model.has_moe()) models.push_back(std::move(model));
  }
  return models;
}

v1::JobSpec JobOf(const Case& c, const SmallModel& model) {
  v1::JobSpec spec = SmallJobOf(model);
  spec.mutable_training()->set_precision(c.precision);
  return spec;
}

// One rank's run, made once.
const Outcome& OneRank(const Case& c, const SmallModel& model) {
  static std::map<std::pair<std::string, std::string>, Outcome> runs;
  const auto key = std::pair<std::string, std::string>(c.backend, model.name);
  if (!runs.contains(key)) {
    absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(c, model), .backend = c.backend, .steps = c.steps});
    EXPECT_TRUE(run.ok()) << run.status();
    runs[key] = run.ok() ? *std::move(run) : Outcome{};
  }
  return runs[key];
}

// What layouts must have in common besides losses and gradients.
void ExpectSameBalance(const Outcome& run, const Outcome& expected, double tolerance) {
  ASSERT_EQ(run.auxiliary_losses.size(), expected.auxiliary_losses.size());
  for (size_t step = 0; step < expected.auxiliary_losses.size(); ++step) {
    ASSERT_EQ(run.auxiliary_losses[step].size(), expected.auxiliary_losses[step].size());
    for (const auto& [name, loss] : expected.auxiliary_losses[step])
      EXPECT_NEAR(run.auxiliary_losses[step].at(name), loss, tolerance * std::abs(loss))
          << name << " of step " << step + 1;
    EXPECT_EQ(run.expert_loads[step].load_ratio, expected.expert_loads[step].load_ratio);
    EXPECT_EQ(run.expert_loads[step].dropped, expected.expert_loads[step].dropped);
  }
}

// Others are in models_test.cc.
std::vector<Layout> FewLayouts() {
  return {{.tensor = 2},
          {.pipeline = 4},
          {.data = 4, .zero = true},
          {.tensor = 2, .data = 2, .pipeline = 2, .sequence = true}};
}

class MoeLayoutTest : public testing::TestWithParam<std::tuple<Layout, SmallModel>> {
 protected:
  void Check(const Case& c) {
    const auto& [layout, model] = GetParam();
    const absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(c, model), .layout = layout, .backend = c.backend, .steps = c.steps});
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(CheckEquivalent(*run, OneRank(c, model), c.tolerance), absl::OkStatus());
    ExpectSameBalance(*run, OneRank(c, model), c.tolerance);
  }
};

TEST_P(MoeLayoutTest, EqualsOneRankInFloat64) { Check(kFloat64); }
TEST_P(MoeLayoutTest, EqualsOneRankInFloat32) { Check(kFloat32); }

INSTANTIATE_TEST_SUITE_P(Layouts, MoeLayoutTest,
                         testing::Combine(testing::ValuesIn(FewLayouts()),
                                          testing::ValuesIn(ModelsWithExperts())),
                         [](const auto& info) {
                           return std::get<0>(info.param).Name() + "_" +
                                  std::get<1>(info.param).name;
                         });

class MoeTest : public testing::TestWithParam<SmallModel> {};

TEST_P(MoeTest, CountsLossesLoadsAndDrops) {
  const Outcome& run = OneRank(kFloat64, GetParam());
  ASSERT_EQ(run.losses.size(), static_cast<size_t>(kFloat64.steps));
  const v1::ModelSpec model = JobOf(kFloat64, GetParam()).model();
  for (size_t step = 0; step < run.losses.size(); ++step) {
    const ExpertLoad& load = run.expert_loads[step];
    EXPECT_EQ(load.first_layer, model.moe().first_dense());
    EXPECT_EQ(load.load_ratio.size(),
              static_cast<size_t>(model.layers() + MtpLayers(model) - model.moe().first_dense()));
    for (const double ratio : load.load_ratio) {
      EXPECT_GT(ratio, 1);
      EXPECT_LE(ratio, static_cast<double>(model.moe().experts()) /
                           static_cast<double>(model.moe().top_k()));
    }
    EXPECT_EQ(load.dropped > 0, model.moe().capacity_factor() > 0);
    const bool balance = model.moe().balance_coefficient() > 0;
    ASSERT_EQ(run.auxiliary_losses[step].contains("balance"), balance);
    // The coefficient if all experts were used alike, per layer; more if they are not. With balance global, none at first.
    if (balance && (step > 0 || model.moe().balance() != v1::MoeSpec::BALANCE_GLOBAL)) {
      const double even =
          model.moe().balance_coefficient() * static_cast<double>(load.load_ratio.size());
      EXPECT_GT(run.auxiliary_losses[step].at("balance"), 0.9 * even);
      EXPECT_LT(run.auxiliary_losses[step].at("balance"), 2 * even);
    }
  }
}

// With a router that knows no difference every score is 1 / E and the first experts are chosen: all terms follow by hand.
TEST_P(MoeTest, EqualScoresAreWorthTheCoefficients) {
  RunOptions options{.spec = JobOf(kFloat64, GetParam()), .steps = 0};
  const v1::MoeSpec& moe = options.spec.model().moe();
  absl::StatusOr<Outcome> fresh = RunJob(options);
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  LogicalState state = std::move(fresh->state);
  const double tokens = static_cast<double>(options.spec.training().global_batch() *
                                            options.spec.data().sequence_length());
  const double experts = static_cast<double>(moe.experts()),
               top_k = static_cast<double>(moe.top_k());
  double layers = 0;
  for (auto& [name, tensor] : state) {
    auto* const values = reinterpret_cast<double*>(tensor.bytes.data());
    if (name.ends_with(".mlp.gate.weight") && !name.starts_with("optimizer.")) {
      std::fill_n(values, tensor.Elements(), 0.0);
      ++layers;
    }
    // The same sum, spread unevenly.
    if (name.starts_with("optimizer.last_load.")) values[1] = tokens * top_k;
  }
  options.resume = &state;
  options.layout = {.data = 2};
  options.steps = 1;
  const absl::StatusOr<Outcome> run = RunJob(options);
  ASSERT_TRUE(run.ok()) << run.status();
  std::map<std::string, double> losses = run->auxiliary_losses.at(0);
  losses.erase("mtp");
  std::map<std::string, double> expected;
  if (moe.balance_coefficient() > 0) expected["balance"] = layers * moe.balance_coefficient();
  if (moe.z_loss() > 0)
    expected["router_z"] = layers * moe.z_loss() * std::pow(std::log(experts), 2);
  ASSERT_EQ(losses.size(), expected.size());
  for (const auto& [name, loss] : expected)
    EXPECT_NEAR(losses.at(name), loss, 1e-12 * loss) << name;
  for (const double ratio : run->expert_loads.at(0).load_ratio)
    EXPECT_DOUBLE_EQ(ratio, experts / top_k);
  if (moe.capacity_factor() > 0) {
    const double rows = static_cast<double>(options.spec.training().micro_batch() *
                                            options.spec.data().sequence_length());
    const double capacity = std::ceil(moe.capacity_factor() * rows * top_k / experts);
    EXPECT_EQ(run->expert_loads.at(0).dropped, layers * top_k * tokens * (1 - capacity / rows));
  }
  for (const auto& [name, tensor] : run->state) {
    if (!name.ends_with("e_score_correction_bias")) continue;
    for (int64_t e = 0; e < moe.experts(); ++e)
      EXPECT_EQ(tensor.At(e),
                e < moe.top_k() ? -moe.selection_bias_rate() : moe.selection_bias_rate());
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, MoeTest, testing::ValuesIn(ModelsWithExperts()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mt::equivalence
