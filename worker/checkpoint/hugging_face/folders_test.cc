// Folders in and out: what an import reads and an export writes is, tensor by tensor, what transformers had.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/spec/model_differences.h"
#include "kernels/abi/small_floats.h"
#include "tests/golden/cases.h"
#include "worker/checkpoint/hugging_face/export.h"
#include "worker/checkpoint/hugging_face/import.h"
#include "worker/checkpoint/hugging_face/test_folder.h"
#include "worker/checkpoint/hugging_face/to_checkpoint.h"

namespace mt {
namespace {

using testing::HasSubstr;

std::unique_ptr<HubFolder> OpenHub(MemEnv* env) {
  auto hub = HubFolder::Open(env, "/hub");
  EXPECT_TRUE(hub.ok()) << hub.status();
  return hub.ok() ? *std::move(hub) : nullptr;
}

absl::Status CheckStatus(MemEnv* env) {
  const auto hub = HubFolder::Open(env, "/hub");
  return hub.ok() ? (*hub)->Check((*hub)->model()) : hub.status();
}

// All weights by parameter.
std::map<std::string, std::vector<float>> AllWeights(const HubFolder& hub) {
  std::map<std::string, std::vector<float>> weights;
  std::vector<TensorBox> boxes;
  for (const LogicalParameter& p : ParametersOf(hub.model())) {
    std::vector<float>& values = weights[p.name];
    values.resize(static_cast<size_t>(p.Elements()));
    boxes.push_back(
        {p.name, p.shape, std::vector<int64_t>(p.shape.size()), p.shape, MT_F32, values.data()});
  }
  const absl::Status status = hub.Load(hub.model(), boxes, nullptr);
  EXPECT_TRUE(status.ok()) << status;
  return weights;
}

class EveryArchitecture : public testing::TestWithParam<const char*> {
 protected:
  // Import of /hub, export to /out.
  HubExportResult RoundTrip(const std::string& dtype, int64_t max_shard_bytes) {
    const auto hub = OpenHub(&env_);
    const auto manifest =
        HubToCheckpoint(*hub, "/hub", "/checkpoint", {.env = &env_, .max_shard_bytes = 50'000});
    EXPECT_TRUE(manifest.ok()) << manifest.status();
    if (!manifest.ok()) return {};
    EXPECT_GT(manifest->files_size(), 1);
    auto reader = CheckpointReader::Create(*manifest, FolderResolver("/checkpoint"), &env_);
    EXPECT_TRUE(reader.ok()) << reader.status();
    v1::JobSpec job = manifest->spec();
    if (trained_on_ > 0) {
      job.mutable_model()->clear_max_positions();
      job.mutable_data()->set_sequence_length(trained_on_);
    }
    const auto exported = ExportToHub(reader->get(), job, "/out",
                                      {.env = &env_,
                                       .dtype = dtype,
                                       .max_shard_bytes = max_shard_bytes,
                                       .carry_from = carries_ ? "/checkpoint/hugging_face" : "",
                                       .eod = eod_});
    EXPECT_TRUE(exported.ok()) << exported.status();
    return exported.value_or(HubExportResult());
  }
  std::map<std::string, TestTensor> Exported() {
    std::map<std::string, TestTensor> all;
    const std::vector<std::string> names = env_.List("/out").value();
    for (const std::string& name : names) {
      if (absl::EndsWith(name, ".safetensors")) all.merge(ReadTensors(&env_, "/out/" + name));
    }
    return all;
  }
  void ExpectSame(const std::map<std::string, TestTensor>& before) {
    const std::map<std::string, TestTensor> after = Exported();
    EXPECT_EQ(before.size(), after.size());
    for (const auto& [name, tensor] : before) {
      ASSERT_TRUE(after.contains(name)) << name;
      EXPECT_EQ(after.at(name).dtype, tensor.dtype) << name;
      EXPECT_EQ(after.at(name).shape, tensor.shape) << name;
      EXPECT_TRUE(after.at(name).bytes == tensor.bytes) << name;
    }
  }

  MemEnv env_;
  bool carries_ = true;
  std::optional<int64_t> eod_;
  int64_t trained_on_ = 0;  // 0: the model tells its longest context
};

TEST_P(EveryArchitecture, ComesBackByteForByteInShards) {
  const TestFolder folder(GetParam());
  folder.Write(&env_);
  WriteTestFile(&env_, "/hub/tokenizer.json", "{}");
  const HubExportResult result = RoundTrip("float32", 60'000);
  ExpectSame(folder.tensors);
  EXPECT_GT(result.files, 1);
  EXPECT_THAT(result.carried, testing::Contains("tokenizer.json"));
  const auto again = HubFolder::Open(&env_, "/out");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(ModelDifferences((*again)->model(), OpenHub(&env_)->model(), false),
              testing::IsEmpty());
  EXPECT_TRUE((*again)->Check((*again)->model()).ok());
  // Keys that say nothing of the model stay as they were.
  EXPECT_THAT(ReadFile(&env_, "/out/config.json").value(), HasSubstr("\"eos_token_id\": 1"));
}

TEST_P(EveryArchitecture, NarrowWeightsComeBackByteForByte) {
  for (const std::string dtype : {"BF16", "F16"}) {
    env_.RemoveTree("/hub").IgnoreError();
    env_.RemoveTree("/checkpoint").IgnoreError();
    env_.RemoveTree("/out").IgnoreError();
    TestFolder folder(GetParam());
    for (auto& [name, tensor] : folder.tensors) {
      if (absl::EndsWith(name, "e_score_correction_bias")) continue;  // stays wide
      const std::vector<float> values = folder.Floats(name);
      tensor.dtype = dtype;
      tensor.bytes.clear();
      for (const float value : values) {
        uint16_t narrow = mt_bf16_from_float(value);
        if (dtype == "F16")
          narrow &= 0xf3ff;  // any bits are a number, unless all of its exponent's are set
        tensor.bytes.append(reinterpret_cast<const char*>(&narrow), 2);
      }
    }
    folder.Write(&env_);
    RoundTrip(dtype == "BF16" ? "bfloat16" : "float16", int64_t{1} << 30);
    ExpectSame(folder.tensors);
  }
}

TEST_P(EveryArchitecture, IsMadeForTheLengthThatItWasTrainedOnIfItTellsNoOther) {
  TestFolder(GetParam()).Write(&env_);
  const v1::ModelSpec model = OpenHub(&env_)->model();
  if (model.position() == v1::ModelSpec::POSITION_LEARNED) return;  // its table tells
  trained_on_ = model.max_positions() + 5;
  RoundTrip("bfloat16", int64_t{1} << 30);
  const auto again = HubFolder::ReadConfig(&env_, "/out");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->model.max_positions(),
            model.rope().scaling() == v1::RopeSpec::SCALING_YARN
                ? static_cast<int64_t>(model.rope().factor() *
                                       static_cast<double>(model.rope().original_max_positions()))
                : trained_on_);
}

// Without a word about it transformers' classes would end texts at an ordinary token.
TEST_P(EveryArchitecture, WhatWasTrainedHereSaysWhichTokenEndsAText) {
  TestFolder(GetParam()).Write(&env_);
  carries_ = false;
  RoundTrip("bfloat16", int64_t{1} << 30);
  EXPECT_THAT(
      ReadFile(&env_, "/out/config.json").value(),
      testing::AllOf(HasSubstr("\"eos_token_id\": null"), HasSubstr("\"bos_token_id\": null")));
  EXPECT_TRUE(env_.RemoveTree("/out").ok() && env_.RemoveTree("/checkpoint").ok());
  eod_ = 7;
  RoundTrip("bfloat16", int64_t{1} << 30);
  for (const char* name : {"config.json", "generation_config.json"}) {
    EXPECT_THAT(ReadFile(&env_, JoinPath("/out", name)).value(), HasSubstr("\"eos_token_id\": 7"));
  }
}

// What a rank of any layout holds is the same part of the same numbers.
TEST_P(EveryArchitecture, AnyBoxIsReadAsThatPartOfTheWhole) {
  TestFolder(GetParam()).Write(&env_);
  const auto hub = OpenHub(&env_);
  const auto whole = AllWeights(*hub);
  for (const LogicalParameter& p : ParametersOf(hub->model())) {
    TensorBox box{.tensor = p.name, .global_shape = p.shape};
    for (const int64_t size : p.shape) {
      box.offset.push_back(size / 3);
      box.shape.push_back(size - size / 3 - size / 4);
    }
    std::vector<double> part(static_cast<size_t>(box.Elements()), -1);
    box.dtype = MT_F64;
    box.data = part.data();
    const absl::Status status = hub->Load(hub->model(), {box}, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    const int64_t columns = p.shape.size() == 1 ? 1 : p.shape[1];
    const int64_t box_columns = p.shape.size() == 1 ? 1 : box.shape[1];
    const int64_t first_column = p.shape.size() == 1 ? 0 : box.offset[1];
    for (int64_t i = 0; i < box.Elements(); ++i) {
      const int64_t row = box.offset[0] + i / box_columns, column = first_column + i % box_columns;
      ASSERT_EQ(part[i], whole.at(p.name)[row * columns + column]) << p.name << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, EveryArchitecture, testing::ValuesIn(kGoldenCases),
                         [](const auto& info) { return info.param; });

// GPT-2's c_attn holds q, k and v transposed, side by side.
TEST(HubImport, Gpt2IsReadWithAndWithoutItsPrefixAndBuffers) {
  MemEnv env;
  TestFolder folder("gpt2");
  folder.Write(&env);
  const auto before = AllWeights(*OpenHub(&env));
  const std::vector<float> attention = folder.Floats("transformer.h.1.attn.c_attn.weight");
  EXPECT_EQ(before.at("model.layers.1.self_attn.k_proj.weight")[5 * 32 + 7],
            attention[7 * 96 + 32 + 5]);

  std::map<std::string, TestTensor> bare;
  for (auto& [name, tensor] : folder.tensors)
    bare[name.substr(sizeof("transformer.") - 1)] = std::move(tensor);
  folder.tensors = std::move(bare);
  folder.Set("h.0.attn.bias", {1, 1, 2, 2}, {1, 0, 1, 1});
  folder.Set("h.0.attn.masked_bias", {}, {-1e4});
  folder.Write(&env);
  EXPECT_TRUE(CheckStatus(&env).ok()) << CheckStatus(&env);
  EXPECT_EQ(AllWeights(*OpenHub(&env)), before);
}

// transformers 5 holds all experts in two tensors.
TEST(HubImport, StackedExpertsAreThoseOneByOne) {
  for (const std::string golden_case : {"mixtral", "qwen3_moe", "deepseek_v3"}) {
    MemEnv env;
    TestFolder folder(golden_case);
    folder.Write(&env);
    const auto hub = OpenHub(&env);
    const auto before = AllWeights(*hub);
    const v1::ModelSpec& m = hub->model();
    for (int64_t layer = m.moe().first_dense(); layer < m.layers(); ++layer) {
      const std::string at = absl::StrCat("model.layers.", layer, ".mlp.");
      std::vector<float> gate_up, down;
      const auto append = [&](std::vector<float>* to, int64_t e, const char* name) {
        const auto& values = before.at(absl::StrCat(at, "experts.", e, ".", name, "_proj.weight"));
        to->insert(to->end(), values.begin(), values.end());
      };
      for (int64_t e = 0; e < m.moe().experts(); ++e) {
        append(&gate_up, e, "gate");
        append(&gate_up, e, "up");
        append(&down, e, "down");
      }
      std::erase_if(folder.tensors, [&](const auto& entry) {
        return absl::StrContains(entry.first, absl::StrCat("layers.", layer, ".")) &&
               absl::StrContains(entry.first, ".experts.");
      });
      const int64_t E = m.moe().experts(), D = m.moe().ffn(), C = m.hidden();
      folder.Set(at + "experts.gate_up_proj", {E, 2 * D, C}, gate_up);
      folder.Set(at + "experts.down_proj", {E, C, D}, down);
    }
    folder.Write(&env);
    EXPECT_TRUE(CheckStatus(&env).ok()) << CheckStatus(&env);
    EXPECT_EQ(AllWeights(*OpenHub(&env)), before) << golden_case;
  }
}

// gpt-oss in memory is [E, in, 2 D] with gate and up in turn; published, it is MXFP4 and the other way round.
TEST(HubImport, GptOssInMxfp4IsDequantised) {
  MemEnv env;
  TestFolder folder("gpt_oss");
  folder.Replace("\"intermediate_size\": 24", "\"intermediate_size\": 32");
  folder.Replace("\"model_type\"",
                 "\"quantization_config\": {\"quant_method\": \"mxfp4\"}, "
                 "\"model_type\"");
  constexpr int64_t E = 4, D = 32, C = 32;
  for (const int layer : {0, 1}) {
    const std::string at = absl::StrCat("model.layers.", layer, ".mlp.experts.");
    folder.tensors.erase(at + "gate_up_proj");
    folder.tensors.erase(at + "down_proj");
    folder.Set(at + "gate_up_proj_bias", {E, 2 * D}, std::vector<float>(E * 2 * D));
    const auto add = [&](const std::string& name, int64_t rows) {
      std::string blocks(static_cast<size_t>(E * rows * 16), '\0'), scales(E * rows, '\0');
      for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<char>(i * 37 + 11);
      for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<char>(120 + i % 12);
      folder.tensors[at + name + "_blocks"] = {"U8", {E, rows, 1, 16}, blocks};
      folder.tensors[at + name + "_scales"] = {"U8", {E, rows, 1}, scales};
    };
    add("gate_up_proj", 2 * D);
    add("down_proj", C);
  }
  folder.Write(&env);
  ASSERT_TRUE(CheckStatus(&env).ok()) << CheckStatus(&env);
  const auto weights = AllWeights(*OpenHub(&env));
  const float values[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
  const auto number = [&](int64_t row, int64_t column) {
    const auto byte = static_cast<uint8_t>((row * 16 + column / 2) * 37 + 11);
    return values[column % 2 == 0 ? byte & 15 : byte >> 4] *
           std::ldexp(1.0f, static_cast<int>(120 + row % 12) - 127);
  };
  for (const int64_t e : {0, 3}) {
    for (int64_t row = 0; row < D; ++row) {
      for (int64_t column = 0; column < C; ++column) {
        const auto of = [&](const char* name) {
          return weights.at(absl::StrCat("model.layers.1.mlp.experts.", e, ".", name,
                                         "_proj.weight"))[row * 32 + column];
        };
        ASSERT_EQ(of("gate"), number(e * 2 * D + 2 * row, column));
        ASSERT_EQ(of("up"), number(e * 2 * D + 2 * row + 1, column));
        ASSERT_EQ(of("down"), number(e * C + row, column));
      }
    }
  }
}

// DeepSeek-V3 as published: FP8 with a scale for every block.
TEST(HubImport, Fp8BlocksAreDequantised) {
  MemEnv env;
  TestFolder folder("deepseek_v3");
  folder.Replace("\"model_type\"",
                 "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", "
                 "\"weight_block_size\": [10, 12]}, \"model_type\"");
  const std::string name = "model.layers.1.self_attn.q_b_proj.weight";  // [96, 24]
  std::string codes(96 * 24, '\0');
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<char>(i % 0x7f);
  folder.tensors[name] = {"F8_E4M3", {96, 24}, codes};
  std::vector<float> scales;
  for (int i = 0; i < 10 * 2; ++i) scales.push_back(0.25f + static_cast<float>(i));
  folder.Set(name + "_scale_inv", {10, 2}, scales);
  folder.Write(&env);
  ASSERT_TRUE(CheckStatus(&env).ok()) << CheckStatus(&env);
  const auto weights = AllWeights(*OpenHub(&env));
  for (int64_t row = 0; row < 96; ++row) {
    for (int64_t column = 0; column < 24; ++column) {
      ASSERT_EQ(weights.at(name)[row * 24 + column],
                mt_float_from_e4m3(static_cast<uint8_t>(codes[row * 24 + column])) *
                    scales[row / 10 * 2 + column / 12]);
    }
  }
  folder.tensors.erase(name + "_scale_inv");
  folder.Write(&env);
  EXPECT_THAT(CheckStatus(&env).ToString(),
              testing::AllOf(HasSubstr("DATA_LOSS"), HasSubstr("without its scales")));
}

TEST(HubImport, WhatIsNotTheModelsIsRefusedByName) {
  MemEnv env;
  TestFolder folder("llama");
  const auto expect = [&](const TestFolder& spoilt, const std::string& code,
                          const std::string& what) {
    MemEnv spoilt_env;
    spoilt.Write(&spoilt_env);
    EXPECT_THAT(CheckStatus(&spoilt_env).ToString(),
                testing::AllOf(HasSubstr(code), HasSubstr(what)));
  };
  TestFolder missing = folder;
  missing.tensors.erase("model.layers.1.mlp.up_proj.weight");
  expect(missing, "FAILED_PRECONDITION", "tensor model.layers.1.mlp.up_proj.weight is missing");
  TestFolder headless = folder;
  headless.tensors.erase("lm_head.weight");
  expect(headless, "FAILED_PRECONDITION", "tie_word_embeddings");
  TestFolder extra = folder;
  extra.Set("model.layers.0.self_attn.q_proj.bias", {32}, std::vector<float>(32));
  expect(extra, "FAILED_PRECONDITION", "q_proj.bias [32] has no place");
  TestFolder wrong = folder;
  wrong.Replace("\"hidden_size\": 32", "\"hidden_size\": 40");
  expect(wrong, "FAILED_PRECONDITION", "is [61,32], but config.json and model make it [61,40]");
  TestFolder counted = folder;
  counted.tensors["model.norm.weight"] = {"I64", {32}, std::string(256, '\0')};
  expect(counted, "UNIMPLEMENTED", "model.norm.weight (I64 [32]): weights are read from");
  TestFolder deeper("deepseek_v3_mtp");
  std::erase_if(deeper.tensors,
                [](const auto& entry) { return absl::StrContains(entry.first, "layers.2."); });
  expect(deeper, "FAILED_PRECONDITION", "mtp: {layers: 0}");
}

TEST(HubImport, AFolderWithoutItsBlockOfMultiTokenPredictionIsTheModelWithoutIt) {
  MemEnv env;
  TestFolder("deepseek_v3_mtp").Write(&env);
  const auto hub = OpenHub(&env);
  v1::ModelSpec without = hub->model();
  without.clear_mtp();
  EXPECT_TRUE(hub->Check(without).ok()) << hub->Check(without);
}

TEST(HubImport, PicklesAndTruncatedAndMissingShardsAreToldApart) {
  MemEnv env;
  const TestFolder folder("llama");
  folder.Write(&env);
  const std::string whole = ReadFile(&env, "/hub/model.safetensors").value();
  WriteTestFile(&env, "/hub/model.safetensors", whole.substr(0, whole.size() - 1));
  EXPECT_THAT(CheckStatus(&env).ToString(),
              testing::AllOf(HasSubstr("DATA_LOSS"), HasSubstr("model.safetensors")));
  ASSERT_TRUE(env.RemoveFile("/hub/model.safetensors").ok());
  EXPECT_THAT(CheckStatus(&env).ToString(), HasSubstr("neither model.safetensors nor"));
  WriteTestFile(&env, "/hub/pytorch_model.bin", "x");
  EXPECT_THAT(CheckStatus(&env).ToString(),
              testing::AllOf(HasSubstr("pickle"), HasSubstr("safe_serialization")));

  const std::string index = "/hub/model.safetensors.index.json";
  WriteTestFile(&env, "/hub/model-00001-of-00002.safetensors", whole);
  WriteTestFile(&env, index,
                R"({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}})");
  EXPECT_THAT(CheckStatus(&env).ToString(), HasSubstr("model-00002-of-00002.safetensors"));
  WriteTestFile(&env, index, R"({"weight_map": {"other": "model-00001-of-00002.safetensors"}})");
  EXPECT_THAT(CheckStatus(&env).ToString(), HasSubstr("promises tensor other"));
  WriteTestFile(&env, index, R"({"weight_map": {"other": "../model.safetensors"}})");
  EXPECT_THAT(CheckStatus(&env).ToString(), HasSubstr("not a safetensors file of this folder"));
  ASSERT_TRUE(env.RemoveFile("/hub/config.json").ok());
  EXPECT_THAT(CheckStatus(&env).ToString(), HasSubstr("has no config.json"));
}

}  // namespace
}  // namespace mt
