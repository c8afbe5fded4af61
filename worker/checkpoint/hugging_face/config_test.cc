// config.json as published and as transformers writes it, to a model and back; what the engine does not have is refused by name.
#include "worker/checkpoint/hugging_face/config.h"
#include "common/spec/model_differences.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/spec/architectures.h"
#include "common/spec/model_traits.h"
#include "common/spec/presets.h"
#include "worker/checkpoint/hugging_face/test_folder.h"

namespace mt {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

v1::ModelSpec Resolved(v1::ModelSpec model) {
  const absl::Status status = ResolveModel(&model);
  EXPECT_TRUE(status.ok()) << status;
  return model;
}

v1::ModelSpec ModelOf(const std::string& json) {
  const auto config = ParseHubConfig(json, "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? Resolved(config->model) : v1::ModelSpec();
}

std::string Refusal(const std::string& json) {
  return ParseHubConfig(json, "config.json").status().ToString();
}

// The files of the published models, as far as they say something of the model.
struct Published {
  const char* preset;
  const char* json;
};

class PublishedConfig : public testing::TestWithParam<Published> {};

TEST_P(PublishedConfig, IsThePreset) {
  const v1::ModelSpec model = ModelOf(GetParam().json);
  v1::ModelSpec preset;
  preset.set_preset(GetParam().preset);
  EXPECT_THAT(ModelDifferences(model, Resolved(preset), false), IsEmpty());
  const auto written = HubConfigOf(model, "bfloat16", GetParam().json);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(ModelDifferences(ModelOf(*written), model, false), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Hub, PublishedConfig,
    testing::Values(
        Published{"gpt2",
                  R"({"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
          "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
          "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
          "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
          "vocab_size": 50257})"},
        Published{"llama3.1-8b", R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false,
          "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
          "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
          "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
          "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
          "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
          "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
          "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256})"},
        Published{"qwen2.5-0.5b", R"({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu",
          "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
          "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
          "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
          "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
          "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936})"},
        Published{"qwen3-8b", R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
          "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
          "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36,
          "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 36,
          "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
          "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": false,
          "use_sliding_window": false, "vocab_size": 151936})"},
        Published{"mistral-7b-v0.1",
                  R"({"architectures": ["MistralForCausalLM"], "hidden_act": "silu",
          "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
          "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
          "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
          "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
          "vocab_size": 32000})"},
        Published{"mixtral-8x7b", R"({"architectures": ["MixtralForCausalLM"], "hidden_act": "silu",
          "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
          "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
          "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
          "num_local_experts": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
          "router_aux_loss_coef": 0.02, "sliding_window": null, "vocab_size": 32000})"},
        Published{"qwen3-30b-a3b", R"({"architectures": ["Qwen3MoeForCausalLM"],
          "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
          "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
          "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
          "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true,
          "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
          "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
          "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
          "sliding_window": null, "tie_word_embeddings": false, "use_sliding_window": false,
          "vocab_size": 151936})"},
        Published{"deepseek-v2-lite", R"({"architectures": ["DeepseekV2ForCausalLM"],
          "attention_bias": false, "aux_loss_alpha": 0.001, "first_k_dense_replace": 1,
          "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
          "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
          "model_type": "deepseek_v2", "moe_intermediate_size": 1408, "moe_layer_freq": 1,
          "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false,
          "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
          "num_key_value_heads": 16, "pretraining_tp": 1, "q_lora_rank": null,
          "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
          "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
          "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"},
          "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
          "seq_aux": true, "tie_word_embeddings": false, "topk_group": 1, "topk_method": "greedy",
          "v_head_dim": 128, "vocab_size": 102400})"},
        Published{"deepseek-v3", R"({"architectures": ["DeepseekV3ForCausalLM"],
          "attention_bias": false, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
          "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432,
          "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
          "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
          "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
          "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
          "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
          "qk_rope_head_dim": 64, "quantization_config": {"activation_scheme": "dynamic",
          "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
          "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
          "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
          "type": "yarn"}, "rope_theta": 10000, "routed_scaling_factor": 2.5,
          "scoring_func": "sigmoid", "tie_word_embeddings": false, "topk_group": 4,
          "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280})"},
        Published{"gpt-oss-20b", R"({"architectures": ["GptOssForCausalLM"], "attention_bias": true,
          "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
          "initializer_range": 0.02, "intermediate_size": 2880, "max_position_embeddings": 131072,
          "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
          "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
          "quantization_config": {"quant_method": "mxfp4",
          "modules_to_not_convert": ["model.layers.*.self_attn"]}, "rms_norm_eps": 1e-05,
          "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
          "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
          "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
          "swiglu_limit": 7.0, "tie_word_embeddings": false, "vocab_size": 201088})"}),
    [](const auto& info) {
      std::string name = info.param.preset;
      std::replace_if(
          name.begin(), name.end(), [](char c) { return !isalnum(c); }, '_');
      return name;
    });

TEST(HubConfig, TransformersFiveKeepsRopeInOneObject) {
  TestFolder old_keys("llama_scaled"), new_keys("llama_scaled");
  new_keys.Replace("\"rope_scaling\": {", "\"rope_parameters\": {\"rope_theta\": 10000.0,");
  new_keys.Replace("  \"rope_theta\": 10000.0,\n", "");
  EXPECT_THAT(ModelDifferences(ModelOf(new_keys.config), ModelOf(old_keys.config), false),
              IsEmpty());
  EXPECT_EQ(ModelOf(new_keys.config).rope().scaling(), v1::RopeSpec::SCALING_LLAMA3);
}

TEST(HubConfig, WindowsAreWhereTransformersPutsThem) {
  const v1::ModelSpec qwen = ModelOf(TestFolder("qwen2").config);
  EXPECT_EQ(WindowOf(qwen, 0), 0);
  EXPECT_EQ(WindowOf(qwen, 1), 5);
  EXPECT_EQ(WindowOf(qwen, 2), 5);
  const v1::ModelSpec oss = ModelOf(TestFolder("gpt_oss").config);
  EXPECT_EQ(WindowOf(oss, 0), 4);
  EXPECT_EQ(WindowOf(oss, 1), 0);
  TestFolder irregular("qwen2");
  const size_t at = irregular.config.find("\"layer_types\": [");
  ASSERT_NE(at, std::string::npos);
  irregular.config.replace(at, irregular.config.find(']', at) - at + 1,
                           "\"layer_types\": [\"sliding_attention\", \"sliding_attention\", "
                           "\"full_attention\"]");
  EXPECT_THAT(Refusal(irregular.config), AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr("layer_types"),
                                               HasSubstr("regular distances")));
}

TEST(HubConfig, WhatTheEngineDoesNotHaveIsRefusedByKeyAndValue) {
  const struct {
    const char* golden_case;
    const char* what;
    const char* with;
    const char* message;
  } cases[] = {
      {"llama", "\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"",
       "hidden_act = \"gelu\": the engine has silu"},
      {"llama", "\"model_type\": \"llama\"", "\"model_type\": \"gemma2\"",
       "model_type = \"gemma2\" is not an architecture that can be trained here; those are "
       "llama, "},
      {"llama", "\"LlamaForCausalLM\"", "\"LlamaForSequenceClassification\"",
       "only the language model, LlamaForCausalLM"},
      {"llama", "\"rope_scaling\": null",
       "\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}",
       "rope_scaling.type = \"dynamic\": the engine has default, linear, llama3 and yarn"},
      {"llama", "\"rope_scaling\": null",
       "\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}",
       "quantization_config.quant_method = \"gptq\""},
      {"qwen3", "\"rope_type\": \"yarn\"", "\"rope_type\": \"yarn\", \"mscale_all_dim\": 1.0",
       "rope_scaling.mscale_all_dim = 1.0: only DeepSeek"},
      {"gpt2", "\"gelu_new\"", "\"relu\"", "activation_function = \"relu\""},
      {"gpt2", "\"scale_attn_by_inverse_layer_idx\": false",
       "\"scale_attn_by_inverse_layer_idx\": true", "scale_attn_by_inverse_layer_idx = true"},
      {"qwen3_moe", "\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 2",
       "decoder_sparse_step = 2"},
      {"qwen3_moe", "\"mlp_only_layers\": []", "\"mlp_only_layers\": [1]", "mlp_only_layers = [1]"},
      {"deepseek_v2", "\"group_limited_greedy\"", "\"noaux_tc\"", "topk_method = \"noaux_tc\""},
      {"deepseek_v2", "\"norm_topk_prob\": false", "\"norm_topk_prob\": true",
       "norm_topk_prob = true"},
      {"deepseek_v3", "\"attention_bias\": false", "\"attention_bias\": true",
       "attention_bias = true"},
      {"deepseek_v3_mtp", "\"num_nextn_predict_layers\": 1", "\"num_nextn_predict_layers\": 2",
       "num_nextn_predict_layers = 2"},
      {"llama", "\"hidden_size\": 32", "\"hidden_size\": \"32\"",
       "hidden_size = \"32\": must be a whole number from 1 to"},
      {"llama", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3",
       "num_key_value_heads = 3: does not divide num_attention_heads = 4"},
      {"llama", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 0", "rms_norm_eps = 0"},
  };
  for (const auto& c : cases) {
    TestFolder folder(c.golden_case);
    folder.Replace(c.what, c.with);
    EXPECT_THAT(Refusal(folder.config), HasSubstr(c.message)) << c.golden_case;
  }
  EXPECT_THAT(Refusal("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(Refusal("{\"model_type\": \"llama\"}"),
              HasSubstr("num_hidden_layers = (not there): must be a whole number"));
}

TEST(HubConfig, WhatIsLeftToTheJobIsNoted) {
  TestFolder folder("mixtral");
  folder.Replace("\"attention_dropout\": 0.0", "\"attention_dropout\": 0.1");
  const auto config = ParseHubConfig(folder.config, "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->notes, testing::ElementsAre(HasSubstr("attention_dropout = 0.1"),
                                                  HasSubstr("router_aux_loss_coef = 0.001")));
  EXPECT_EQ(config->model.moe().balance_coefficient(), 0);
}

TEST(HubConfig, AModelThatItsClassHasNoPlaceForIsNotWritten) {
  v1::ModelSpec model;
  model.set_preset("qwen3-8b");
  model.set_sinks(true);
  model.mutable_window()->set_size(100);
  EXPECT_THAT(HubConfigOf(Resolved(model), "bfloat16", "").status().ToString(),
              AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr("Qwen3ForCausalLM has no place"),
                    HasSubstr("model.sinks is true, not false")));
  model.set_sinks(false);
  EXPECT_TRUE(HubConfigOf(Resolved(model), "bfloat16", "").ok());
}

TEST(HubConfig, WhatOnlyFilesThatDoNotGoAlongCanReadIsLeftOut) {
  v1::ModelSpec model;
  model.set_preset("qwen3-8b");
  const auto config = HubConfigOf(Resolved(model), "bfloat16",
                                  R"({"auto_map": {"AutoModel": "modeling.Own"}, "my_key": 1})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(*config, AllOf(HasSubstr("my_key"), testing::Not(HasSubstr("auto_map"))));
}

TEST(HubConfig, DifferencesTellFieldAndBothValues) {
  v1::ModelSpec model;
  model.set_preset("llama3-8b");
  v1::ModelSpec other = model;
  other.set_heads(16);
  other.set_rope_theta(10000);
  other.set_init_std(0.5);
  EXPECT_THAT(ModelDifferences(Resolved(model), Resolved(other), false),
              testing::ElementsAre("model.heads is 32, not 16", "model.head_dim is 128, not 256",
                                   "model.rope_theta is 500000.0, not 10000.0"));
  EXPECT_THAT(ModelDifferences(Resolved(model), Resolved(other), true), testing::SizeIs(2));
}

}  // namespace
}  // namespace mt
