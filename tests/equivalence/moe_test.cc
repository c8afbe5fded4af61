// Models with experts: every layout equals one rank, in losses, loads and every gradient; nothing that should not changes a bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "google/protobuf/text_format.h"
#include "tests/equivalence/harness.h"

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

// Ways of routing that models have, each with losses and a limit of another kind.
struct Kind {
  const char* name;
  const char* model;  // over SmallJob's
};
void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }
constexpr Kind kKinds[] = {
    {"Mixtral",
     "moe { experts: 6 top_k: 2 ffn: 12 score: SCORE_SOFTMAX_TOP_K normalize: true scale: 1 "
     "groups: 1 "
     "top_groups: 1 balance: BALANCE_BATCH balance_coefficient: 0.05 z_loss: 0.01 }"},
    {"Qwen3",
     "moe { experts: 8 top_k: 3 ffn: 8 score: SCORE_SOFTMAX normalize: true scale: 1 groups: 1 "
     "top_groups: 1 balance: BALANCE_GLOBAL balance_coefficient: 0.05 capacity_factor: 1 drop: "
     "DROP_PROBABILITY }"},
    {"DeepSeek",
     "moe { experts: 8 top_k: 3 ffn: 8 shared_ffn: 16 first_dense: 1 score: SCORE_SIGMOID "
     "normalize: "
     "true scale: 2.5 groups: 4 top_groups: 2 group_score: GROUP_SCORE_TOP_2 selection_bias: true "
     "selection_bias_rate: 0.01 balance: BALANCE_SEQUENCE balance_coefficient: 0.05 }"},
    {"GptOss",
     "swiglu_limit: 0.3 swiglu_alpha: 1.702 swiglu_offset: 1 mlp_bias: true moe { experts: 6 "
     "top_k: 2 "
     "ffn: 12 score: SCORE_SOFTMAX_TOP_K normalize: true scale: 1 groups: 1 top_groups: 1 "
     "router_bias: true z_loss: 0.02 balance: BALANCE_NONE capacity_factor: 0.5 drop: "
     "DROP_POSITION }"}};

v1::JobSpec JobOf(const Case& c, const Kind& kind) {
  v1::JobSpec spec = SmallJob();
  spec.mutable_training()->set_precision(c.precision);
  v1::ModelSpec traits;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kind.model, &traits)) << kind.name;
  spec.mutable_model()->MergeFrom(traits);
  return spec;
}

// One rank's run, made once.
const Outcome& OneRank(const Case& c, const Kind& kind) {
  static std::map<std::pair<std::string, std::string>, Outcome> runs;
  const auto key = std::pair<std::string, std::string>(c.backend, kind.name);
  if (!runs.contains(key)) {
    absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(c, kind), .backend = c.backend, .steps = c.steps});
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

class MoeLayoutTest : public testing::TestWithParam<std::tuple<Layout, Kind>> {
 protected:
  void Check(const Case& c) {
    const auto& [layout, kind] = GetParam();
    const absl::StatusOr<Outcome> run =
        RunJob({.spec = JobOf(c, kind), .layout = layout, .backend = c.backend, .steps = c.steps});
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(CheckEquivalent(*run, OneRank(c, kind), c.tolerance), absl::OkStatus());
    ExpectSameBalance(*run, OneRank(c, kind), c.tolerance);
  }
};

TEST_P(MoeLayoutTest, EqualsOneRankInFloat64) { Check(kFloat64); }
TEST_P(MoeLayoutTest, EqualsOneRankInFloat32) { Check(kFloat32); }

INSTANTIATE_TEST_SUITE_P(Layouts, MoeLayoutTest,
                         testing::Combine(testing::ValuesIn(AllLayouts()),
                                          testing::ValuesIn(kKinds)),
                         [](const auto& info) {
                           return std::get<0>(info.param).Name() + "_" +
                                  std::get<1>(info.param).name;
                         });

class MoeTest : public testing::TestWithParam<Kind> {};

TEST_P(MoeTest, LearnsWithLossesCountedAndChoicesSpread) {
  const Outcome& run = OneRank(kFloat64, GetParam());
  ASSERT_EQ(run.losses.size(), static_cast<size_t>(kFloat64.steps));
  EXPECT_LT(run.losses.back(), run.losses.front());
  const v1::ModelSpec model = JobOf(kFloat64, GetParam()).model();
  for (size_t step = 0; step < run.losses.size(); ++step) {
    const ExpertLoad& load = run.expert_loads[step];
    EXPECT_EQ(load.first_layer, model.moe().first_dense());
    EXPECT_EQ(load.load_ratio.size(),
              static_cast<size_t>(model.layers() - model.moe().first_dense()));
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

INSTANTIATE_TEST_SUITE_P(Kinds, MoeTest, testing::ValuesIn(kKinds),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mt::equivalence
