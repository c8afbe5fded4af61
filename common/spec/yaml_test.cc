#include "common/spec/yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <google/protobuf/util/message_differencer.h>

#include "common/spec/defaults.h"
#include "common/spec/print.h"

namespace mt {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::HasSubstr;

std::string ErrorOf(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const auto spec = ParseJobSpec(text, "job.yaml", overrides);
  if (spec.ok()) return "accepted: " + spec->ShortDebugString();
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(spec.status().message());
}

constexpr char kFull[] = R"(
name: tiny
model:
  architecture: llama
  layers: 4
  hidden: 1_024
  heads: 8
  ffn: 2816
  rope_theta: 5e5
  tie_embeddings: true
data:
  train: /data/wiki
  tokenizer: byte
  sequence_length: 256
  split: 969,30,1
training:
  steps: 100
  global_batch: 16
  seed: 0
  optimizer: {kind: adamw, lr: 1e-3, weight_decay: 0}
  schedule: {kind: wsd, warmup_steps: 10}
  precision: fp32
parallel: {tensor: 2, data: 2, zero: 0}
checkpoint: {every_steps: 0, replicas: 0}
fault: {stop_grace: 1m30s}
labels: {team: "42"}
runtime:
  operations: {attention_forward: reference}
)";

TEST(ParseJobSpec, ReadsEveryKindOfValue) {
  const auto spec = ParseJobSpec(kFull, "job.yaml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name(), "tiny");
  EXPECT_EQ(spec->model().architecture(), v1::ARCHITECTURE_LLAMA);
  EXPECT_EQ(spec->model().hidden(), 1024);
  EXPECT_EQ(spec->model().rope_theta(), 5e5);
  EXPECT_TRUE(spec->model().tie_embeddings());
  EXPECT_EQ(spec->data().split(), "969,30,1");
  EXPECT_TRUE(spec->training().has_seed());
  EXPECT_EQ(spec->training().seed(), 0);
  EXPECT_TRUE(spec->training().optimizer().has_weight_decay());
  EXPECT_EQ(spec->training().schedule().kind(), v1::ScheduleSpec::KIND_WSD);
  EXPECT_TRUE(spec->parallel().zero_set());
  EXPECT_EQ(spec->fault().stop_grace().seconds(), 90);
  EXPECT_EQ(spec->labels().at("team"), "42");
  EXPECT_EQ(spec->runtime().operations().at("attention_forward"), "reference");
}

TEST(ParseJobSpec, WhatIsPrintedReadsBackTheSame) {
  auto spec = ParseJobSpec(kFull, "job.yaml");
  ASSERT_TRUE(spec.ok());
  const auto plain = ParseJobSpec(JobSpecToYaml(*spec), "printed");
  ASSERT_TRUE(plain.ok()) << plain.status() << "\n" << JobSpecToYaml(*spec);
  EXPECT_TRUE(MessageDifferencer::Equals(*plain, *spec)) << JobSpecToYaml(*spec);
  ASSERT_TRUE(FillDefaults(&*spec).ok());
  const auto resolved = ParseJobSpec(JobSpecToYaml(*spec), "printed");
  ASSERT_TRUE(resolved.ok()) << resolved.status() << "\n" << JobSpecToYaml(*spec);
  EXPECT_TRUE(MessageDifferencer::Equals(*resolved, *spec)) << JobSpecToYaml(*spec);
}

TEST(ParseJobSpec, DatasetsAreOneOrAListOfPrefixesAndMappings) {
  const auto sources = [](const std::string& text, const std::vector<std::string>& overrides = {}) {
    const auto spec = ParseJobSpec("data:\n  train: " + text, "job.yaml", overrides);
    if (!spec.ok()) return std::string(spec.status().message());
    const auto printed = ParseJobSpec(JobSpecToYaml(*spec), "printed");
    EXPECT_TRUE(printed.ok() && MessageDifferencer::Equals(*printed, *spec))
        << JobSpecToYaml(*spec);
    std::string all;
    for (const v1::DataSource& s : spec->data().train())
      absl::StrAppend(&all, s.prefix(), " ", s.weight(), ";");
    return all;
  };
  EXPECT_EQ(sources("/a"), "/a 0;");
  EXPECT_EQ(sources("[/a, /b]"), "/a 0;/b 0;");
  EXPECT_EQ(sources("{prefix: /a, weight: 2}"), "/a 2;");
  EXPECT_EQ(sources("\n  - {prefix: /a, weight: 0.25}\n  - prefix: /b\n    weight: 1e3\n"),
            "/a 0.25;/b 1000;");
  EXPECT_EQ(sources("[/a, /b]", {"data.train=/c"}), "/c 0;") << "an override replaces the list";
  EXPECT_EQ(sources("/a", {"data.train=[/b, {prefix: /c, weight: 3}]"}), "/b 0;/c 3;");

  EXPECT_EQ(sources("[]"),
            "job.yaml:2:10: data.train: is an empty list; name a dataset, or delete the key");
  EXPECT_EQ(sources("[{prefx: /a}]"),
            "job.yaml:2:12: data.train[0].prefx: unknown key; did you mean `prefix`?");
  EXPECT_EQ(sources("[/a, {prefix: /b, weight: 0}]"),
            "job.yaml:2:36: data.train[1].weight: must not be 0; delete the key to take the "
            "default");
  EXPECT_EQ(sources("[/a, [/b]]"),
            "job.yaml:2:15: data.train[1]: expected a mapping with keys such as `prefix`, "
            "`weight`, got a list");
}

TEST(ParseJobSpec, DocumentsFimAndRampUpReadBackTheSame) {
  const auto spec = ParseJobSpec(R"(
model: {layers: 1, hidden: 8, heads: 1, ffn: 8}
data:
  train: /a
  test: [/b]
  tokenizer: byte
  sequence_length: 8
  eod: -1
  mask_eod: true
  document_mask: true
  reset_positions: true
  packing: documents
  fim: {rate: 0, spm_rate: 0, prefix: 0, middle: 1, suffix: 2}
  distribute: true
training: {steps: 1, global_batch: 8, batch_rampup: {start: 2, increment: 3, samples: 100}}
)",
                                 "job.yaml");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->data().eod(), -1);
  EXPECT_EQ(spec->data().packing(), v1::DataSpec::PACKING_DOCUMENTS);
  EXPECT_TRUE(spec->data().fim().has_prefix());
  EXPECT_EQ(spec->training().batch_rampup().increment(), 3);
  v1::JobSpec resolved = *spec;
  ASSERT_TRUE(FillDefaults(&resolved).ok());
  for (const v1::JobSpec& one : {*spec, resolved}) {
    const auto printed = ParseJobSpec(JobSpecToYaml(one), "printed");
    ASSERT_TRUE(printed.ok()) << printed.status() << "\n" << JobSpecToYaml(one);
    EXPECT_TRUE(MessageDifferencer::Equals(*printed, one)) << JobSpecToYaml(one);
  }
}

// Golden texts: a user reads these, so they are compared whole.
struct Refused {
  const char* text;
  const char* error;
};
class RefusedTest : public testing::TestWithParam<Refused> {};
TEST_P(RefusedTest, SaysWhereAndWhatWouldDo) {
  EXPECT_EQ(ErrorOf(GetParam().text), GetParam().error);
}
INSTANTIATE_TEST_SUITE_P(
    Golden, RefusedTest,
    testing::Values(
        Refused{"name: a\nmodel:\n  layer: 4\n",
                "job.yaml:3:3: model.layer: unknown key; did you mean `layers`?"},
        Refused{"name: a\nmodle: {}\n", "job.yaml:2:1: modle: unknown key; did you mean `model`?"},
        Refused{"lr: 3\n", "job.yaml:1:1: lr: unknown key; did you mean `training.optimizer.lr`?"},
        Refused{"model:\n  num_layers: 4\n",
                "job.yaml:2:3: model.num_layers: unknown key; did you mean `layers`?"},
        Refused{"checkpoint:\n  zzzzzzzz: 1\n",
                "job.yaml:2:3: checkpoint.zzzzzzzz: unknown key; known here: every_steps, "
                "keep_last, path, replicas, "
                "resume_from"},
        Refused{"parallel:\n  zero_set: true\n",
                "job.yaml:2:3: parallel.zero_set: unknown key; did you mean `zero`?"},
        Refused{"model:\n  layers: twelve\n",
                "job.yaml:2:11: model.layers: expected a whole number, got `twelve`"},
        Refused{"model:\n  layers: \"12\"\n",
                "job.yaml:2:11: model.layers: expected a whole number, got the text \"12\"; remove "
                "the quotes"},
        Refused{"model:\n  layers: 1e3\n",
                "job.yaml:2:11: model.layers: expected a whole number, got `1e3`; write 1000"},
        Refused{"model:\n  layers: 1.5\n",
                "job.yaml:2:11: model.layers: expected a whole number, got `1.5`"},
        Refused{"model:\n  layers: 1__0\n",
                "job.yaml:2:11: model.layers: expected a whole number, got `1__0`"},
        Refused{
            "model:\n  layers: 99999999999999999999\n",
            "job.yaml:2:11: model.layers: `99999999999999999999` is out of range; the limits are "
            "-9223372036854775808 and 9223372036854775807"},
        Refused{"parallel:\n  tensor: 3000000000\n",
                "job.yaml:2:11: parallel.tensor: `3000000000` is out of range; the limits are "
                "-2147483648 and 2147483647"},
        Refused{"training:\n  micro_batch: 0\n",
                "job.yaml:2:16: training.micro_batch: must not be 0; delete the key to take the "
                "default"},
        Refused{"training:\n  optimizer: {lr: .nan}\n",
                "job.yaml:2:19: training.optimizer.lr: expected a number, got `.nan`"},
        Refused{"training:\n  optimizer: {lr: 1e999}\n",
                "job.yaml:2:19: training.optimizer.lr: `1e999` is out of range"},
        Refused{"training:\n  schedule:\n    kind: cosin\n",
                "job.yaml:3:11: training.schedule.kind: unknown value `cosin`; did you mean "
                "`cosine`? known: constant, "
                "linear, cosine, wsd"},
        Refused{"training:\n  precision: unspecified\n",
                "job.yaml:2:14: training.precision: unknown value `unspecified`; known: fp32, "
                "fp64, bf16, fp8"},
        Refused{"model:\n  tie_embeddings: yes\n",
                "job.yaml:2:19: model.tie_embeddings: expected true or false, got `yes`"},
        Refused{"fault:\n  stop_grace: 30\n",
                "job.yaml:2:15: fault.stop_grace: expected a duration such as 30s, 5m or 2h, got "
                "`30`; write 30s for seconds"},
        Refused{"fault:\n  stop_grace: soon\n",
                "job.yaml:2:15: fault.stop_grace: expected a duration such as 30s, 5m or 2h, got "
                "`soon`"},
        Refused{"name: a\nname: b\n", "job.yaml:2:1: name: the key is there twice; delete one"},
        Refused{
            "name:\n",
            "job.yaml:1:1: name: has no value; write one, or delete the key to take the default"},
        Refused{"name: [a]\n", "job.yaml:1:7: name: expected text, got a list"},
        Refused{"model: 3\n",
                "job.yaml:1:8: model: no preset is called `3`; `mtctl model list` has all"},
        Refused{"model: [1]\n",
                "job.yaml:1:8: model: expected a mapping with keys such as `architecture`, "
                "`layers`, `hidden`, got a list"},
        Refused{"- a\n",
                "job.yaml:1:1: expected a mapping with keys such as `name`, `model`, `data`, got a "
                "list"},
        Refused{"labels: {a: 1, a: 2}\n",
                "job.yaml:1:16: labels.a: the key is there twice; delete one"},
        Refused{"name: !!binary aGk=\n",
                "job.yaml:1:7: name: the tag `tag:yaml.org,2002:binary` is not understood; write "
                "the plain value"},
        Refused{"",
                "job.yaml: is empty; see examples/ and docs/guide/job-spec.md for what goes in"},
        Refused{"name: a\n---\nname: b\n",
                "job.yaml: more than one document; put each job in a file of its own"}));

TEST(ParseJobSpec, MalformedTextHasItsPlace) {
  EXPECT_THAT(ErrorOf("name: [a\n"), HasSubstr("job.yaml:2:1: not readable as YAML:"));
  EXPECT_THAT(ErrorOf("name: a\n\tmodel: 3\n"), HasSubstr("job.yaml:"));
}

TEST(ParseJobSpec, HostileTextIsRefusedAndDoesNotCrash) {
  EXPECT_THAT(ErrorOf(std::string(100'000, '[')), HasSubstr("job.yaml"));
  EXPECT_THAT(ErrorOf("name: " + std::string(40, '[') + std::string(40, ']')),
              HasSubstr("nested more than 32 deep"));
  EXPECT_THAT(ErrorOf(std::string((1 << 20) + 1, 'a')), HasSubstr("at most 1048576"));
  std::string aliases = "labels:\n  a: &x v\n";
  for (int i = 0; i < 65; ++i) absl::StrAppend(&aliases, "  k", i, ": *x\n");
  EXPECT_THAT(ErrorOf(aliases), HasSubstr("more than 64 aliases"));
  EXPECT_THAT(ErrorOf(std::string("name: \"a\\x00b\"\n")), HasSubstr("control character"));
  for (const char* text :
       {"\xee\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe4\xb8"}) {
    EXPECT_THAT(ErrorOf(absl::StrCat("name: ", text, "\n")),
                ::testing::AnyOf(HasSubstr("not UTF-8"), HasSubstr("not readable")));
    EXPECT_FALSE(ParseJobSpec("name: a", "job.yaml", {absl::StrCat("labels.a=", text)}).ok());
  }
  EXPECT_TRUE(ParseJobSpec("labels: {a: \"\u4e16\U0001F600\"}", "job.yaml").ok());
}

TEST(ParseJobSpec, OverridesObeyTheSameRules) {
  const auto spec =
      ParseJobSpec(kFull, "job.yaml",
                   {"training.steps=7", "parallel={tensor: 4}", "labels.team=red",
                    "training.schedule.kind=linear",
                    "data.tokenizer=", "runtime.operations.rms_norm=reference", "labels.a.b=c"});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->training().steps(), 7);
  EXPECT_EQ(spec->parallel().tensor(), 4);
  EXPECT_EQ(spec->parallel().data(), 2) << "what an override does not name stays";
  EXPECT_EQ(spec->labels().at("team"), "red");
  EXPECT_EQ(spec->labels().at("a.b"), "c");
  EXPECT_EQ(spec->data().tokenizer(), "");
  EXPECT_EQ(spec->runtime().operations_size(), 2);

  EXPECT_EQ(ErrorOf(kFull, {"training.step=7"}),
            "--set training.step=7: training.step: unknown key; did you mean `steps`?");
  EXPECT_EQ(ErrorOf(kFull, {"training.steps=many"}),
            "--set training.steps=many: training.steps: expected a whole number, got `many`");
  EXPECT_EQ(ErrorOf(kFull, {"training"}),
            "--set training: expected key=value, such as training.steps=100");
  EXPECT_EQ(ErrorOf(kFull, {"name.x=1"}), "--set name.x=1: name: is a value and has no key `x`");
  EXPECT_EQ(
      ErrorOf(kFull, {"training.steps=0"}),
      "--set training.steps=0: training.steps: must not be 0; delete the key to take the default");
}

TEST(NearestWord, FindsTypingErrorsAndNothingFarther) {
  EXPECT_EQ(NearestWord("tesnor", {"tensor", "data"}), "tensor");
  EXPECT_EQ(NearestWord("kv-heads", {"heads", "kv_heads"}), "kv_heads");
  EXPECT_EQ(NearestWord("banana", {"tensor", "data"}), "");
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

}  // namespace
}  // namespace mt
