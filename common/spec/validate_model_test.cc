// Every trait of a model that cannot be trained is named with its value and a remedy.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/spec/defaults.h"
#include "common/spec/validate.h"
#include "common/spec/yaml.h"

namespace mt {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// `model` and `rest` are YAML in braces and lines.
v1::JobSpec Job(const std::string& model, const std::string& rest = "") {
  auto spec = ParseJobSpec(absl::StrCat("name: a\nmodel: ", model,
                                        "\ndata: {train: /d, sequence_length: 64}\n"
                                        "training: {steps: 10, global_batch: 4}\n",
                                        rest),
                           "job.yaml");
  EXPECT_TRUE(spec.ok()) << spec.status();
  if (!spec.ok()) return {};
  EXPECT_TRUE(FillDefaults(&*spec).ok());
  return *spec;
}

struct Case {
  const char* name;
  const char* model;  // over a small one
  const char* problem;
};
class ModelProblemTest : public testing::TestWithParam<Case> {};

TEST_P(ModelProblemTest, IsNamedWithItsRemedy) {
  const std::string model = absl::StrCat("{vocab: 320, layers: 4, hidden: 64, heads: 8, ffn: 128, ",
                                         GetParam().model, "}");
  EXPECT_THAT(SpecProblems(Job(model)), ElementsAre(GetParam().problem));
}

INSTANTIATE_TEST_SUITE_P(
    Table, ModelProblemTest,
    testing::Values(
        Case{"learned", "position: learned",
             "model.max_positions is not set; a table of learned positions has that many rows: set "
             "it to data.sequence_length = 64 or more"},
        Case{"learned_short", "architecture: gpt2, max_positions: 32",
             "data.sequence_length = 64: the table of learned positions has 32 rows; use at most "
             "that, or set model.max_positions"},
        Case{"rope_factor_alone", "rope: {factor: 8}",
             "model.rope.factor = 8: does nothing with model.rope.scaling = none; delete it, or "
             "set scaling: linear, llama3 or yarn"},
        Case{"rope_no_factor", "rope: {scaling: yarn}",
             "model.rope.factor = 0: how many times longer the context becomes; use 1 or more"},
        Case{"rope_of_another", "rope: {scaling: linear, factor: 2, mscale: 1}",
             "model.rope.mscale = 1: does nothing with model.rope.scaling = linear; delete it, or "
             "set scaling: yarn"},
        Case{"rope_order", "rope: {scaling: llama3, factor: 2, low_freq_factor: 4}",
             "model.rope.high_freq_factor = 4: must be more than model.rope.low_freq_factor = 4, "
             "and both more than 0"},
        Case{"rope_beta", "rope: {scaling: yarn, factor: 2, beta_slow: 64}",
             "model.rope.beta_fast = 32: must be more than model.rope.beta_slow = 64, and both "
             "more than 0"},
        Case{"rope_theta", "rope_theta: 1, rope: {scaling: yarn, factor: 2}",
             "model.rope_theta = 1: model.rope.scaling = yarn needs more than 1; 10000 is usual"},
        Case{"rope_learned",
             "position: learned, max_positions: 64, rope: {scaling: linear, factor: 2}",
             "model.rope.scaling = linear: model.position = learned has no rotation; delete it"},
        Case{"window", "window: {size: -3}",
             "model.window.size = -3: out of range; use 1 to 1073741824"},
        Case{"window_first", "window: {size: 16, first_layer: 4}",
             "model.window.first_layer = 4: out of range; use 0 to 3"},
        Case{"window_nothing", "window: {first_layer: 2}",
             "model.window.first_layer = 2: does nothing without model.window.size; set that, or "
             "delete it"},
        Case{"swiglu", "activation: gelu, swiglu_limit: 7",
             "model.swiglu_limit = 7: does nothing with model.activation = gelu; delete it, or use "
             "swiglu"},
        Case{"swiglu_limit", "swiglu_limit: -1",
             "model.swiglu_limit = -1: must not be negative; 0 is off"},
        Case{"mla_odd", "mla: {kv_rank: 16, rope_dim: 15}",
             "model.mla.rope_dim = 15: rotary positions need an even number; use 14 or 16"},
        Case{
            "mla_kv_heads", "kv_heads: 2, mla: {kv_rank: 16}",
            "model.kv_heads = 2: latent attention (model.mla) has a key for every head; delete it"},
        Case{
            "mla_qk_norm", "qk_norm: true, mla: {kv_rank: 16}",
            "model.qk_norm = true: latent attention (model.mla) has none; delete it, or model.mla"},
        Case{"mla_window", "window: {size: 8}, mla: {kv_rank: 16}",
             "model.window.size = 8: latent attention (model.mla) has none; delete it, or "
             "model.mla"},
        Case{"mla_learned", "position: learned, max_positions: 64, mla: {kv_rank: 16}",
             "model.position = learned: latent attention (model.mla) has rotary ones; delete it, "
             "or model.mla"},
        Case{"mla_nothing", "mla: {q_rank: 16}",
             "model.mla.kv_rank = 0: the other keys of model.mla do nothing without it; set it, or "
             "delete model.mla"},
        Case{"moe_nothing", "moe: {top_k: 2}",
             "model.moe.experts = 0: the other keys of model.moe do nothing without it; set it, or "
             "delete model.moe"},
        Case{"moe_gelu", "activation: gelu, moe: {experts: 4}",
             "model.activation = gelu: experts (model.moe) have a gate; use swiglu, or delete "
             "model.moe"},
        Case{"moe_rate", "moe: {experts: 4, selection_bias_rate: 0.1}",
             "model.moe.selection_bias_rate = 0.1: does nothing without model.moe.selection_bias: "
             "true; set that, or delete it"},
        Case{"moe_drop", "moe: {experts: 4, drop: position}",
             "model.moe.drop = position: nothing is dropped without model.moe.capacity_factor; set "
             "that, or delete it"},
        Case{"moe_top_k", "moe: {experts: 4, top_k: 5}",
             "model.moe.top_k = 5 of model.moe.experts = 4; set model.moe.top_k to 1 to 4"},
        Case{"moe_groups", "moe: {experts: 4, groups: 3}",
             "model.moe.groups = 3 does not divide model.moe.experts = 4; set model.moe.groups to "
             "2"},
        Case{"mtp", "mtp: {layers: 2}",
             "model.mtp.layers = 2: one more token is predicted at most; use 0 or 1"},
        Case{"mtp_learned", "norm: layer, mtp: {layers: 1}",
             "model.mtp.layers = 1: multi-token prediction has RMS norms and rotary positions; "
             "delete it, or set model.norm: rms and model.position: rope"},
        Case{"mtp_nothing", "mtp: {loss_coefficient: 0.3}",
             "model.mtp.loss_coefficient = 0.3: does nothing without model.mtp.layers: 1; set "
             "that, or delete it"},
        Case{"family", "architecture: mixtral",
             "model.architecture = mixtral: is a mixture of experts; set model.moe.experts, or use "
             "another architecture"},
        Case{"family_mla", "architecture: deepseek_v3",
             "model.architecture = deepseek_v3: has latent attention; set model.mla.kv_rank, or "
             "use another architecture"}),
    [](const auto& info) { return info.param.name; });

constexpr char kSmall[] = "{vocab: 321, layers: 4, hidden: 64, heads: 8, ffn: 128";

TEST(ModelSection, EverySizeThatTheTensorGroupSharesMustDivide) {
  EXPECT_THAT(
      SpecProblems(Job(absl::StrCat(kSmall, ", moe: {experts: 4, ffn: 36, shared_ffn: 20}}"),
                       "parallel: {tensor: 8}")),
      ElementsAre("parallel.tensor = 8: does not divide model.moe.ffn = 36, "
                  "model.moe.shared_ffn = 20; use 1 or 2 or 4"));
  EXPECT_THAT(
      SpecProblems(Job(absl::StrCat(kSmall, ", mla: {kv_rank: 16}}"), "parallel: {tensor: 8}")),
      IsEmpty())
      << "latent attention has no kv_heads, and a vocabulary of 321 is padded";
}

TEST(ModelSection, SizesWithoutSenseAreToldAtOnce) {
  EXPECT_THAT(SpecProblems(Job("{vocab: 320, layers: 4, hidden: 9223372036854775807, heads: 8, "
                               "ffn: 128}")),
              ElementsAre("model.hidden = 9223372036854775807: out of range; use 1 to 1048576"));
  EXPECT_THAT(SpecProblems(Job("{vocab: 320, layers: 4, hidden: 64, heads: 9223372036854775807, "
                               "kv_heads: 2, ffn: 128}")),
              ElementsAre("model.heads = 9223372036854775807: out of range; use 1 to 65536"));
  EXPECT_THAT(SpecProblems(Job("{vocab: 320, layers: 10000, hidden: 64, heads: 8, ffn: 128, "
                               "moe: {experts: 16384}}")),
              ElementsAre("model.moe.experts = 16384: model.layers = 10000 blocks have more than "
                          "1048576 together; use at most 104"));
}

TEST(ModelSection, Fp8NamesTheTraitThatHasNone) {
  auto problems = [](const std::string& trait) {
    v1::JobSpec spec = Job(absl::StrCat(kSmall, ", ", trait, "}"));
    spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP8);
    return SpecProblems(spec);
  };
  EXPECT_THAT(problems("head_dim: 16"), IsEmpty());
  EXPECT_THAT(problems("mla: {kv_rank: 16}"),
              ElementsAre("training.precision = fp8: a model with latent attention (model.mla) has "
                          "no FP8 products; set training.precision to bf16"));
  EXPECT_THAT(problems("moe: {experts: 4}"),
              ElementsAre("training.precision = fp8: a model with experts (model.moe) has no FP8 "
                          "products; set training.precision to bf16"));
  EXPECT_THAT(problems("mtp: {layers: 1}"),
              ElementsAre("training.precision = fp8: a model with multi-token prediction "
                          "(model.mtp) has no FP8 products; set training.precision to bf16"));
}

TEST(ModelSection, ASequenceLongerThanTheModelIsMadeForIsANote) {
  const v1::JobSpec spec = Job(absl::StrCat(kSmall, ", max_positions: 32}"));
  EXPECT_THAT(SpecProblems(spec), IsEmpty());
  EXPECT_THAT(SpecNotes(spec),
              ElementsAre("data.sequence_length = 64: is more than 32, the longest context that "
                          "the model is made for (model.max_positions)"));
}

TEST(Evaluation, NeedsDataThatIsHeldOut) {
  const auto problems = [](const std::string& split, const std::string& validation) {
    v1::JobSpec spec = Job(absl::StrCat(kSmall, "}"));
    spec.mutable_training()->mutable_evaluation()->set_every_steps(5);
    spec.mutable_data()->set_split(split);
    if (!validation.empty()) spec.mutable_data()->add_validation()->set_prefix(validation);
    EXPECT_TRUE(FillDefaults(&spec).ok());
    EXPECT_EQ(spec.training().evaluation().batches(), 8);
    return SpecProblems(spec);
  };
  EXPECT_THAT(problems("1,0,0", ""),
              ElementsAre("training.evaluation.every_steps = 5: no data is held out; set "
                          "data.validation, or a second share in data.split such as 969,30,1"));
  EXPECT_THAT(problems("95,5,0", ""), IsEmpty());
  EXPECT_THAT(problems("1,0,0", "/held/out"), IsEmpty());
  EXPECT_THAT(problems("1,0,0", "out.idx"),
              ElementsAre("data.validation = `out.idx`: is a prefix; write it without the ending: "
                          "out"));
}

TEST(InitialCheckpoint, IsAFolderThatEveryNodeSees) {
  v1::JobSpec spec = Job(absl::StrCat(kSmall, "}"));
  spec.set_initial_checkpoint("hf:models/a");
  EXPECT_THAT(SpecProblems(spec),
              ElementsAre("initial_checkpoint = `hf:models/a`: use hf:/FOLDER for Hugging Face's "
                          "files or the folder of a checkpoint, absolute, as every node sees it"));
  spec.set_initial_checkpoint("hf:/models/a");
  EXPECT_THAT(SpecProblems(spec), IsEmpty());
  spec.mutable_checkpoint()->set_resume_from("b-1");
  EXPECT_THAT(SpecProblems(spec),
              ElementsAre("initial_checkpoint = `hf:/models/a`: checkpoint.resume_from starts from "
                          "other weights; delete one"));
}

}  // namespace
}  // namespace mt
