#include "common/spec/check_moe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/spec/activation_plan.h"
#include "google/protobuf/text_format.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

// A job that passes, with `change` (text format) over it.
absl::Status Check(const std::string& change, int tensor = 1) {
  v1::JobSpec spec;
  const std::string text = R"(
      model { architecture: ARCHITECTURE_DEEPSEEK_V3 layers: 4 hidden: 16 heads: 2 kv_heads: 2 head_dim: 8 ffn: 32 vocab: 32
              moe { experts: 8 top_k: 2 ffn: 12 shared_ffn: 12 first_dense: 1 score: SCORE_SIGMOID normalize: true scale: 2.5
                    groups: 4 top_groups: 2 group_score: GROUP_SCORE_TOP_2 balance: BALANCE_SEQUENCE
                    balance_coefficient: 0.001 } }
      data { sequence_length: 8 }
      training { steps: 1 global_batch: 4 micro_batch: 2 loss_chunk: 8 precision: PRECISION_FP32 })";
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &spec));
  v1::JobSpec changes;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(change, &changes)) << change;
  spec.MergeFrom(changes);
  return CheckSizes(spec, *Mesh::Create(tensor, 1, 1));
}

TEST(CheckMoeTest, AcceptsWhatGoesTogether) {
  EXPECT_EQ(Check(""), absl::OkStatus());
  EXPECT_EQ(Check("", 2), absl::OkStatus());
  EXPECT_EQ(Check("model { moe { groups: 8 top_groups: 8 group_score: GROUP_SCORE_MAX } }"),
            absl::OkStatus());
}

TEST(CheckMoeTest, NamesFieldValueAndRemedy) {
  struct Refusal {
    const char* change;
    std::vector<const char*> says;
    int tensor = 1;
  };
  const Refusal refusals[] = {
      {"model { moe { top_k: 9 } }",
       {"model.moe.top_k = 9", "model.moe.experts = 8", "set model.moe.top_k to 1 to 8"}},
      {"model { moe { groups: 3 } }", {"model.moe.groups = 3 does not divide", "groups to 2"}},
      {"model { moe { top_groups: 5 } }", {"model.moe.top_groups = 5", "1 to 4"}},
      {"model { moe { top_k: 5 } }",
       {"model.moe.top_k = 5 is more than the 4 experts",
        "at most 4 or model.moe.top_groups to 3"}},
      {"model { moe { groups: 8 } }", {"group_score = top_2", "group_score to max"}},
      {"model { moe { ffn: 13 } }",
       {"model.moe.ffn = 13 does not divide over parallel.tensor = 2", "model.moe.ffn to 14"},
       2},
      {"model { moe { shared_ffn: 5 } }",
       {"model.moe.shared_ffn = 5 does not divide", "model.moe.shared_ffn to 6"},
       2},
      {"model { moe { first_dense: 4 } }", {"model.moe.first_dense = 4", "0 to 3"}},
      {"model { moe { balance: BALANCE_NONE } }",
       {"model.moe.balance_coefficient = 0.001 with model.moe.balance = none"}},
      {"model { moe { balance_coefficient: -1 } }", {"model.moe.balance_coefficient = -1"}},
      {"model { moe { z_loss: nan } }", {"model.moe.z_loss = nan"}},
      {"model { moe { capacity_factor: -0.5 } }", {"model.moe.capacity_factor = -0.5"}},
      {"model { moe { scale: -2 } }", {"model.moe.scale = -2"}},
      {"model { activation: ACTIVATION_GELU }", {"gelu", "set model.activation to swiglu"}},
      {"training { precision: PRECISION_FP8 }",
       {"training.precision = fp8", "experts (model.moe)", "to bf16"}},
      {"data { sequence_length: 1073741824 }", {"model.moe.top_k", "32 bits"}},
  };
  for (const Refusal& refusal : refusals) {
    const absl::Status status = Check(refusal.change, refusal.tensor);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << refusal.change;
    for (const char* says : refusal.says) EXPECT_THAT(status.message(), HasSubstr(says));
  }
}

}  // namespace
}  // namespace mt
