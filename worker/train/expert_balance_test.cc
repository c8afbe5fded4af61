#include "worker/train/expert_balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "google/protobuf/text_format.h"

namespace mt {
namespace {

constexpr int64_t kTokens = 32;

// Four blocks, the first dense; 4 experts of which a token takes 2. The reference backend's memory is the host's.
class ExpertBalanceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* text = R"(
        model { layers: 4 moe { experts: 4 top_k: 2 first_dense: 1 selection_bias: true selection_bias_rate: 0.25
                                balance: BALANCE_GLOBAL balance_coefficient: 0.5 z_loss: 0.125 } }
        data { sequence_length: 8 } training { global_batch: 4 micro_batch: 1 })";
    ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &spec_));
    absl::StatusOr<std::unique_ptr<Operations>> operations =
        Operations::Create({.backend = "reference", .threads = 1});
    ASSERT_TRUE(operations.ok()) << operations.status();
    operations_ = *std::move(operations);
  }
  std::unique_ptr<ExpertBalance> Make(int pipeline = 1, int rank = 0, bool trained = true) {
    const NumberTypes types = TypesOf(v1::TrainingSpec::PRECISION_FP32);
    absl::StatusOr<std::unique_ptr<ExpertBalance>> balance =
        ExpertBalance::Create(spec_, *Mesh::Create(1, 1, pipeline), rank,
                              {.types = types, .trained = trained}, operations_.get());
    EXPECT_TRUE(balance.ok()) << balance.status();
    return *std::move(balance);
  }
  // One step in which block `layer` had these choices.
  static void Step(ExpertBalance& balance, int64_t layer, std::vector<float> load, double scale) {
    ASSERT_EQ(balance.Begin(), absl::OkStatus());
    std::copy(load.begin(), load.end(), static_cast<float*>(balance.Training(layer).load));
    ASSERT_EQ(balance.Sum(nullptr, nullptr), absl::OkStatus());
    ASSERT_EQ(balance.Update(&scale), absl::OkStatus());
    ASSERT_EQ(balance.End(), absl::OkStatus());
  }
  static std::vector<float> Bias(const ExpertBalance& balance, int64_t layer) {
    const auto* bias = static_cast<const float*>(balance.SelectionBias(layer));
    return {bias, bias + 4};
  }

  v1::JobSpec spec_;
  std::unique_ptr<Operations> operations_;
};

TEST_F(ExpertBalanceTest, BiasesMoveTowardsTheTarget) {
  auto balance = Make();
  Step(*balance, 2, {20, 16, 4, 24}, 1);  // 64 choices: 16 of each
  EXPECT_THAT(Bias(*balance, 2), testing::ElementsAre(-0.25f, 0, 0.25f, -0.25f));
  EXPECT_THAT(Bias(*balance, 3), testing::Each(0.25f));  // no choices at all
  EXPECT_EQ(balance->Load().first_layer, 1);
  EXPECT_THAT(balance->Load().load_ratio, testing::ElementsAre(0, 1.5, 0));
}

TEST_F(ExpertBalanceTest, AStepThatIsNotFiniteLeavesTheBiases) {
  auto balance = Make();
  Step(*balance, 1, {32, 32, 0, 0}, 1);
  const std::vector<float> before = Bias(*balance, 1);
  Step(*balance, 1, {0, 0, 32, 32}, NAN);
  EXPECT_EQ(Bias(*balance, 1), before);
}

TEST_F(ExpertBalanceTest, TheGlobalLossIsOfTheLoadsThatWereKept) {
  auto balance = Make();
  Step(*balance, 1, {32, 16, 16, 0}, 1);
  ASSERT_EQ(balance->Begin(), absl::OkStatus());  // that step was not kept
  EXPECT_EQ(balance->Training(1).global_gradient64[0], 0);
  Step(*balance, 1, {8, 56, 0, 0}, 1);
  ASSERT_EQ(balance->Keep(), absl::OkStatus());
  ASSERT_EQ(balance->Begin(), absl::OkStatus());
  // coefficient E / k f / tokens^2
  EXPECT_DOUBLE_EQ(balance->Training(1).global_gradient64[1],
                   0.5 * 4 / 2 * 56 / (kTokens * kTokens));
  EXPECT_EQ(balance->Training(1).global_gradient64[2], 0);
}

// While the batch ramps up, the step before had other tokens than this one.
TEST_F(ExpertBalanceTest, TargetsAndScalesAreThoseOfTheStepsOwnTokens) {
  auto balance = Make();
  balance->SetTokens(16, 16);
  Step(*balance, 2, {8, 16, 4, 4}, 1);  // 32 choices: 8 of each
  EXPECT_THAT(Bias(*balance, 2), testing::ElementsAre(0, -0.25f, 0.25f, 0.25f));
  ASSERT_EQ(balance->Keep(), absl::OkStatus());
  balance->SetTokens(kTokens, 16);
  ASSERT_EQ(balance->Begin(), absl::OkStatus());
  EXPECT_DOUBLE_EQ(balance->Training(2).global_gradient64[1], 0.5 * 4 / 2 * 16 / (16 * kTokens));
  EXPECT_DOUBLE_EQ(balance->Training(2).z_scale, 0.125 / kTokens);
}

TEST_F(ExpertBalanceTest, EveryStageSavesItsOwnBlocks) {
  std::vector<std::string> names;
  for (const int rank : {0, 1}) {
    const auto balance = Make(/*pipeline=*/2, rank);
    for (const TensorBox& box : balance->CheckpointBoxes()) names.push_back(box.tensor);
    EXPECT_EQ(balance->LoadBoxes().size(), balance->CheckpointBoxes().size());
  }
  EXPECT_THAT(names,
              testing::UnorderedElementsAre("model.layers.1.mlp.gate.e_score_correction_bias",
                                            "model.layers.2.mlp.gate.e_score_correction_bias",
                                            "model.layers.3.mlp.gate.e_score_correction_bias",
                                            "optimizer.last_load.model.layers.1.mlp.gate",
                                            "optimizer.last_load.model.layers.2.mlp.gate",
                                            "optimizer.last_load.model.layers.3.mlp.gate"));
}

TEST_F(ExpertBalanceTest, WithoutTrainingThereAreTheBiasesOnly) {
  const auto balance = Make(1, 0, /*trained=*/false);
  EXPECT_EQ(balance->LoadBoxes().size(), 3u);
  EXPECT_EQ(balance->Training(1).load, nullptr);
  EXPECT_EQ(balance->Training(1).z_scale, 0);
}

TEST_F(ExpertBalanceTest, DenseModelsHaveNone) {
  spec_.mutable_model()->clear_moe();
  EXPECT_EQ(Make(), nullptr);
}

}  // namespace
}  // namespace mt
