#include "common/spec/presets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include <google/protobuf/util/message_differencer.h>

#include "common/spec/architectures.h"
#include "common/spec/defaults.h"
#include "common/spec/model_traits.h"
#include "common/spec/parameters.h"
#include "common/spec/print.h"
#include "common/spec/validate.h"
#include "common/spec/yaml.h"

namespace mt {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;

v1::ModelSpec Resolved(const std::string& preset) {
  v1::ModelSpec model;
  model.set_preset(preset);
  EXPECT_TRUE(ResolveModel(&model).ok()) << preset;
  return model;
}

// What publishers say. `total` is exact: the elements of the published weights (Hugging Face's count of the safetensors files;
// of a tied head once; of DeepSeek-V3 without multi-token prediction), or, where no weights are public, of the published table
// of sizes. `active` is in units of 1e9 as rounded in the model card or paper, 0 where all are.
struct Published {
  const char* name;
  int64_t total;
  double active = 0;
  double unit = 0.1;  // of the rounding of `active`
  bool active_has_embedding = true;
};
constexpr Published kPublished[] = {
    {"gpt2", 124'439'808},
    {"gpt2-medium", 354'823'168},
    {"gpt2-large", 774'030'080},
    {"gpt2-xl", 1'557'611'200},
    {"gpt3-125m", 125'226'240},
    {"gpt3-350m", 355'871'744},
    {"gpt3-760m", 760'300'032},
    {"gpt3-1.3b", 1'315'723'264},
    {"gpt3-2.7b", 2'651'553'280},
    {"gpt3-6.7b", 6'658'404'352},
    {"gpt3-13b", 12'853'386'240},
    {"gpt3-175b", 174'604'259'328},
    {"llama2-7b", 6'738'415'616},
    {"llama2-13b", 13'015'864'320},
    {"llama2-70b", 68'976'648'192},
    {"llama3-8b", 8'030'261'248},
    {"llama3-70b", 70'553'706'496},
    {"llama3.1-8b", 8'030'261'248},
    {"llama3.1-70b", 70'553'706'496},
    {"llama3.1-405b", 405'853'388'800},
    {"llama3.2-1b", 1'235'814'400},
    {"llama3.2-3b", 3'212'749'824},
    {"qwen2.5-0.5b", 494'032'768},
    {"qwen2.5-1.5b", 1'543'714'304},
    {"qwen2.5-3b", 3'085'938'688},
    {"qwen2.5-7b", 7'615'616'512},
    {"qwen2.5-14b", 14'770'033'664},
    {"qwen2.5-32b", 32'763'876'352},
    {"qwen2.5-72b", 72'706'203'648},
    {"qwen3-0.6b", 596'049'920},
    {"qwen3-1.7b", 1'720'574'976},
    {"qwen3-4b", 4'022'468'096},
    {"qwen3-8b", 8'190'735'360},
    {"qwen3-14b", 14'768'307'200},
    {"qwen3-32b", 32'762'123'264},
    {"mistral-7b-v0.1", 7'241'732'096},
    {"mistral-7b-v0.3", 7'248'023'552},
    {"mixtral-8x7b", 46'702'792'704, 12.9},
    {"mixtral-8x22b", 140'620'634'112, 39, 1},
    {"qwen3-30b-a3b", 30'532'122'624, 3.3},
    {"qwen3-235b-a22b", 235'093'634'560, 22, 1},
    {"deepseek-v2-lite", 15'706'484'224, 2.4, 0.1, false},
    {"deepseek-v2", 235'741'434'880, 21, 1},
    {"deepseek-v3", 671'026'419'200, 36.6, 0.1, false},
    {"gpt-oss-20b", 20'914'757'184, 3.61, 0.01, false},
    {"gpt-oss-120b", 116'829'156'672, 5.13, 0.01, false},
};

TEST(Presets, HaveThePublishedNumberOfParameters) {
  std::vector<std::string> published;
  for (const Published& p : kPublished) {
    published.push_back(p.name);
    v1::ModelSpec model = Resolved(p.name);
    const int64_t active = ActiveParameterCount(model);
    EXPECT_EQ(model.mtp().layers(), model.preset() == "deepseek-v3" ? 1 : 0) << p.name;
    model.mutable_mtp()->set_layers(0);
    EXPECT_EQ(ParameterCount(model), p.total) << p.name;
    if (p.active == 0) {
      EXPECT_EQ(active, p.total) << p.name;
      EXPECT_FALSE(HasExperts(model)) << p.name;
      continue;
    }
    const int64_t embedding = p.active_has_embedding ? 0 : model.vocab() * model.hidden();
    // Some cut where others round.
    EXPECT_NEAR(static_cast<double>(active - embedding) / 1e9, p.active, p.unit) << p.name;
  }
  EXPECT_THAT(PresetNames(), ElementsAreArray(published));
}

TEST(Presets, MultiTokenPredictionOfDeepSeekV3AddsOneBlockAndItsProjection) {
  v1::ModelSpec model = Resolved("deepseek-v3");
  EXPECT_EQ(ParameterCount(model) - 671'026'419'200, 11'610'068'224);
}

v1::JobSpec Job(const std::string& model) {
  auto spec = ParseJobSpec(absl::StrCat("name: a\nmodel: ", model,
                                        "\ndata: {train: /d, sequence_length: 1024}\n"
                                        "training: {steps: 10, global_batch: 2}\n"),
                           "job.yaml");
  EXPECT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(FillDefaults(&*spec).ok()) << model;
  return *spec;
}

TEST(Presets, AreValidJobsThatPrintAndReadBackTheSame) {
  for (const std::string& name : PresetNames()) {
    const v1::JobSpec spec = Job(name);
    EXPECT_THAT(SpecProblems(spec), IsEmpty()) << name;
    auto copy = ParseJobSpec(JobSpecToYaml(spec), "printed");
    ASSERT_TRUE(copy.ok()) << copy.status() << JobSpecToYaml(spec);
    EXPECT_TRUE(MessageDifferencer::Equals(*copy, spec)) << JobSpecToYaml(spec);
    ASSERT_TRUE(FillDefaults(&*copy).ok());
    EXPECT_TRUE(MessageDifferencer::Equals(*copy, spec)) << "resolving twice changes " << name;
    // JSON is YAML: what a script got, it can submit.
    const auto json = ParseJobSpec(MessageToJson(spec).dump(), "json");
    ASSERT_TRUE(json.ok()) << json.status();
    EXPECT_TRUE(MessageDifferencer::Equals(*json, spec)) << name;
  }
}

TEST(Presets, AnyFieldOverrides) {
  const v1::ModelSpec model =
      Job("{preset: llama3.2-1b, layers: 4, hidden: 64, heads: 4, kv_heads: 2, "
          "tie_embeddings: false, rope: {factor: 8}}")
          .model();
  EXPECT_EQ(model.layers(), 4);
  EXPECT_EQ(model.head_dim(), 16) << "follows from the new sizes";
  EXPECT_FALSE(model.tie_embeddings());
  EXPECT_EQ(model.rope().factor(), 8);
  EXPECT_EQ(model.rope().scaling(), v1::RopeSpec::SCALING_LLAMA3);
  EXPECT_EQ(model.vocab(), 128256);
  EXPECT_EQ(Job("{preset: mixtral-8x7b, moe: {experts: 4}}").model().moe().top_k(), 2);
}

TEST(Presets, WhatAnOverrideSwitchesOffIsGoneWhole) {
  const v1::ModelSpec no_rope_scaling = Job("{preset: llama3.1-8b, rope: {scaling: none}}").model();
  EXPECT_EQ(no_rope_scaling.rope().factor(), 0);
  const v1::ModelSpec no_experts = Job("{preset: deepseek-v3, moe: {experts: 0}}").model();
  EXPECT_EQ(no_experts.moe().ShortDebugString(), "experts: 0");
  EXPECT_EQ(no_experts.ffn(), 18432);
  const v1::ModelSpec no_mtp = Job("{preset: deepseek-v3, mtp: {layers: 0}}").model();
  EXPECT_EQ(MtpLayers(no_mtp), 0);
  EXPECT_EQ(no_mtp.mtp().loss_coefficient(), 0);
  EXPECT_FALSE(Job("{preset: deepseek-v2, mla: {kv_rank: 0}}").model().mla().has_q_rank());
  EXPECT_EQ(WindowOf(Job("{preset: mistral-7b-v0.1, window: {size: 0}}").model(), 0), 0);
  const v1::ModelSpec gelu = Job("{preset: gpt-oss-20b, activation: gelu}").model();
  EXPECT_FALSE(gelu.has_swiglu_limit());
  EXPECT_EQ(gelu.swiglu_alpha(), 0);
}

TEST(Presets, AnUnknownOneIsNamedWithTheNearest) {
  const auto error = [](const std::string& text) {
    return std::string(ParseJobSpec(text, "job.yaml").status().message());
  };
  EXPECT_EQ(error("name: a\nmodel: llama3-9b\n"),
            "job.yaml:2:8: model: no preset is called `llama3-9b`; did you mean `llama3-8b`? "
            "(`mtctl model list` has all)");
  EXPECT_EQ(error("model:\n  preset: mixtral-7x8b\n"),
            "job.yaml:2:11: model.preset: no preset is called `mixtral-7x8b`; did you mean "
            "`mixtral-8x7b`? (`mtctl model list` has all)");
  EXPECT_EQ(error("model: banana\n"),
            "job.yaml:1:8: model: no preset is called `banana`; `mtctl model list` has all");
  v1::ModelSpec model;
  model.set_preset("nothing");
  EXPECT_EQ(ResolveModel(&model).message(),
            "model.preset: no preset is called `nothing`; `mtctl model list` has all");
}

TEST(Presets, TheScalarFormOnTheCommandLineReplacesTheModelOfTheFile) {
  const auto spec =
      ParseJobSpec("model: {layers: 4, hidden: 8}\n", "job.yaml", {"model=gpt2", "model.layers=3"});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->model().ShortDebugString(), "layers: 3 preset: \"gpt2\"");
}

TEST(Architectures, HaveTheirTraitsWithoutAPreset) {
  v1::ModelSpec qwen2, gpt2, deepseek, gpt_oss;
  qwen2.set_architecture(v1::ARCHITECTURE_QWEN2);
  ASSERT_TRUE(ResolveModel(&qwen2).ok());
  EXPECT_TRUE(qwen2.qkv_bias());
  EXPECT_TRUE(qwen2.has_output_bias() && !qwen2.output_bias());
  gpt2.set_architecture(v1::ARCHITECTURE_GPT2);
  gpt2.set_tie_embeddings(false);
  ASSERT_TRUE(ResolveModel(&gpt2).ok());
  EXPECT_TRUE(HasLayerNorm(gpt2) && HasLearnedPositions(gpt2) && !IsGated(gpt2));
  EXPECT_FALSE(gpt2.tie_embeddings()) << "what is written goes over what is usual";
  EXPECT_FALSE(gpt2.has_rope());
  deepseek.set_architecture(v1::ARCHITECTURE_DEEPSEEK_V3);
  deepseek.mutable_moe()->set_experts(8);
  deepseek.mutable_moe()->set_ffn(32);
  ASSERT_TRUE(ResolveModel(&deepseek).ok());
  EXPECT_TRUE(deepseek.rope().interleaved() && deepseek.moe().selection_bias());
  EXPECT_EQ(deepseek.moe().selection_bias_rate(), 1e-3);
  EXPECT_EQ(deepseek.moe().top_groups(), 1);
  EXPECT_EQ(deepseek.ffn(), 32) << "no block is dense";
  gpt_oss.set_architecture(v1::ARCHITECTURE_GPT_OSS);
  gpt_oss.mutable_moe()->set_experts(4);
  gpt_oss.mutable_window()->set_size(16);
  ASSERT_TRUE(ResolveModel(&gpt_oss).ok());
  EXPECT_EQ(gpt_oss.swiglu_alpha(), 1.702);
  EXPECT_EQ(WindowOf(gpt_oss, 0), 16);
  EXPECT_EQ(WindowOf(gpt_oss, 1), 0);
}

TEST(FillDefaults, TheModelOfTheWeightsIsTheBaseUnlessAPresetIs) {
  v1::JobSpec spec;
  spec.set_initial_checkpoint("hf:/models/a");
  spec.mutable_model()->set_tie_embeddings(true);
  int asked = 0;
  const SpecFiles files{.model_of = [&](const std::string& folder) {
    EXPECT_EQ(folder, "hf:/models/a");
    ++asked;
    return absl::StatusOr<v1::ModelSpec>(Resolved("qwen3-8b"));
  }};
  v1::JobSpec preset = spec, nothing = spec, folder = spec;
  ASSERT_TRUE(FillDefaults(&spec, files).ok());
  EXPECT_EQ(spec.model().layers(), 36);
  EXPECT_TRUE(spec.model().tie_embeddings());
  EXPECT_TRUE(FillDefaults(&spec).ok()) << "the coordinator need not see the folder";
  preset.mutable_model()->set_preset("gpt2");
  ASSERT_TRUE(FillDefaults(&preset, files).ok());
  EXPECT_EQ(preset.model().layers(), 12);
  EXPECT_EQ(asked, 1);
  folder.clear_initial_checkpoint();
  folder.mutable_model()->set_preset("hf:/models/a");
  EXPECT_THAT(FillDefaults(&folder).message(),
              HasSubstr("model is not set, and model.preset = `hf:/models/a` is not read here"));
  ASSERT_TRUE(FillDefaults(&folder, files).ok());
  EXPECT_EQ(folder.model().layers(), 36);
  EXPECT_EQ(folder.model().preset(), "hf:/models/a");
  EXPECT_TRUE(FillDefaults(&folder).ok());
  EXPECT_THAT(FillDefaults(&nothing).message(),
              HasSubstr("model is not set, and initial_checkpoint = `hf:/models/a`"));
}

}  // namespace
}  // namespace mt
