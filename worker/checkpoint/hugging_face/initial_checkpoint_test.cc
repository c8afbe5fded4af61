// What a job may begin with, and what its ranks then hold.
#include "worker/checkpoint/hugging_face/initial_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/spec/architectures.h"
#include "common/spec/parameters.h"
#include "worker/checkpoint/hugging_face/test_folder.h"
#include "worker/checkpoint/hugging_face/to_checkpoint.h"

namespace mt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class InitialCheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_.Write(&env_);
    const auto hub = HubFolder::Open(&env_, "/hub");
    ASSERT_TRUE(hub.ok()) << hub.status();
    *spec_.mutable_model() = (*hub)->model();
    const auto manifest = HubToCheckpoint(**hub, "/hub", "/checkpoint", {.env = &env_});
    ASSERT_TRUE(manifest.ok()) << manifest.status();
  }
  std::string Check(const std::string& initial) {
    spec_.set_initial_checkpoint(initial);
    return CheckInitialCheckpoint(&env_, spec_).ToString();
  }

  MemEnv env_;
  TestFolder folder_{"deepseek_v3"};
  v1::JobSpec spec_;
};

TEST_F(InitialCheckpointTest, WeightsAreTheFoldersAndOptimizerStateIsZero) {
  const std::string name = "model.layers.1.mlp.experts.5.up_proj.weight";
  for (const std::string initial : {"hf:/hub", "/checkpoint"}) {
    EXPECT_EQ(Check(initial), "OK");
    std::vector<float> weights(16 * 32, -1), moments(16 * 32, -1), half(8 * 32, -1);
    const std::vector<TensorBox> boxes = {
        {name, {16, 32}, {0, 0}, {16, 32}, MT_F32, weights.data()},
        {name, {16, 32}, {8, 0}, {8, 32}, MT_F32, half.data()},
        {"optimizer.exp_avg." + name, {16, 32}, {0, 0}, {16, 32}, MT_F32, moments.data()}};
    const absl::Status status = LoadInitialCheckpoint(&env_, spec_, boxes, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(weights, folder_.Floats(name)) << initial;
    EXPECT_TRUE(std::equal(half.begin(), half.end(), weights.begin() + 8 * 32)) << initial;
    EXPECT_THAT(moments, testing::Each(0)) << initial;
  }
}

TEST_F(InitialCheckpointTest, AnotherModelIsRefusedWithFieldAndBothValues) {
  spec_.mutable_model()->set_heads(8);
  for (const char* initial : {"hf:/hub", "/checkpoint"}) {
    EXPECT_THAT(Check(initial), AllOf(HasSubstr("FAILED_PRECONDITION"), HasSubstr(initial),
                                      HasSubstr("model.heads is 8, not 4")));
  }
}

// A trait beside the folder is a change on purpose; a named model is meant to be what the folder holds.
TEST_F(InitialCheckpointTest, TraitsMayChangeUnlessAPresetIsNamed) {
  spec_.mutable_model()->set_rope_theta(12345);
  EXPECT_EQ(Check("hf:/hub"), "OK");
  spec_.mutable_model()->set_preset("hf:/hub");
  EXPECT_EQ(Check("hf:/hub"), "OK");
  spec_.mutable_model()->set_preset("deepseek-v3");
  EXPECT_THAT(Check("hf:/hub"), HasSubstr("model.rope_theta is 12345.0, not 100.0"));
}

TEST_F(InitialCheckpointTest, WhatIsNotWholeIsRefused) {
  EXPECT_THAT(Check("hf:/nowhere"), AllOf(HasSubstr("NOT_FOUND"), HasSubstr("no config.json")));
  EXPECT_THAT(Check("/nowhere"), AllOf(HasSubstr("NOT_FOUND"), HasSubstr("hf:FOLDER")));
  const std::string shard = "/checkpoint/shard-r0.safetensors";
  WriteTestFile(&env_, shard, ReadFile(&env_, shard).value().substr(1));
  EXPECT_THAT(Check("/checkpoint"), AllOf(HasSubstr("DATA_LOSS"), HasSubstr("its manifest says")));
  folder_.tensors.erase("model.norm.weight");
  folder_.Write(&env_);
  EXPECT_THAT(Check("hf:/hub"), HasSubstr("model.norm.weight is missing"));
}

TEST_F(InitialCheckpointTest, FreshWeightsNeedNoFolder) { EXPECT_EQ(Check(""), "OK"); }

}  // namespace
}  // namespace mt
