#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "common/spec/architectures.h"
#include "common/spec/model_differences.h"
#include "common/spec/model_traits.h"
#include "worker/checkpoint/hugging_face/architecture_names.h"
#include "worker/checkpoint/hugging_face/config.h"

namespace mt {
namespace {

using Json = nlohmann::ordered_json;

Json RopeScaling(const v1::ModelSpec& m) {
  const v1::RopeSpec& s = m.rope();
  Json rope;
  switch (s.scaling()) {
    case v1::RopeSpec::SCALING_LINEAR:
      return {{"rope_type", "linear"}, {"factor", s.factor()}};
    case v1::RopeSpec::SCALING_LLAMA3:
      return {{"rope_type", "llama3"},
              {"factor", s.factor()},
              {"low_freq_factor", s.low_freq_factor()},
              {"high_freq_factor", s.high_freq_factor()},
              {"original_max_position_embeddings", s.original_max_positions()}};
    case v1::RopeSpec::SCALING_YARN:
      rope = {{"rope_type", "yarn"},
              {"factor", s.factor()},
              {"beta_fast", s.beta_fast()},
              {"beta_slow", s.beta_slow()},
              {"original_max_position_embeddings", s.original_max_positions()},
              {"truncate", s.truncate()}};
      if (s.attention_factor() > 0) rope["attention_factor"] = s.attention_factor();
      if (s.mscale() > 0) rope["mscale"] = s.mscale();
      if (s.mscale_all_dim() > 0) rope["mscale_all_dim"] = s.mscale_all_dim();
      return rope;
    default:
      return nullptr;
  }
}

void WriteGpt2(const v1::ModelSpec& m, Json& c) {
  c["n_layer"] = m.layers();
  c["n_embd"] = m.hidden();
  c["n_head"] = m.heads();
  c["n_inner"] = m.ffn();
  c["n_positions"] = m.max_positions();
  c.erase("n_ctx");  // an old name of n_positions
  c["layer_norm_epsilon"] = m.norm_eps();
  c["activation_function"] = m.activation() == v1::ModelSpec::ACTIVATION_GELU ? "gelu" : "gelu_new";
  for (const char* key : {"resid_pdrop", "embd_pdrop", "attn_pdrop"}) c[key] = 0.0;
}

void WriteWindow(const v1::ModelSpec& m, Json& c) {
  const v1::Architecture a = m.architecture();
  const bool has_window = m.window().size() > 0;
  if (a == v1::ARCHITECTURE_LLAMA) return;
  c["sliding_window"] = has_window ? Json(m.window().size()) : Json(nullptr);
  const bool has_switch = a == v1::ARCHITECTURE_QWEN2 || a == v1::ARCHITECTURE_QWEN3;
  if (has_switch || a == v1::ARCHITECTURE_QWEN3_MOE) c["use_sliding_window"] = has_window;
  if (!has_switch && a != v1::ARCHITECTURE_GPT_OSS) return;
  Json types = Json::array();
  for (int64_t i = 0; i < m.layers(); ++i)
    types.push_back(WindowOf(m, i) > 0 ? "sliding_attention" : "full_attention");
  c["layer_types"] = std::move(types);
  if (has_switch) c["max_window_layers"] = has_window ? m.window().first_layer() : m.layers();
}

void WriteMoe(const v1::ModelSpec& m, Json& c) {
  const v1::MoeSpec& moe = m.moe();
  c["num_experts_per_tok"] = moe.top_k();
  switch (m.architecture()) {
    case v1::ARCHITECTURE_MIXTRAL:
    case v1::ARCHITECTURE_GPT_OSS:
      c["num_local_experts"] = moe.experts();
      c["intermediate_size"] = moe.ffn();
      return;
    case v1::ARCHITECTURE_QWEN3_MOE: {
      c["num_experts"] = moe.experts();
      c["moe_intermediate_size"] = moe.ffn();
      c["norm_topk_prob"] = moe.normalize();
      c["decoder_sparse_step"] = 1;
      Json dense = Json::array();
      for (int64_t i = 0; i < moe.first_dense(); ++i) dense.push_back(i);
      c["mlp_only_layers"] = std::move(dense);
      return;
    }
    default:
      break;
  }
  const bool v3 = m.architecture() == v1::ARCHITECTURE_DEEPSEEK_V3;
  c["n_routed_experts"] = moe.experts();
  c["moe_intermediate_size"] = moe.ffn();
  c["n_shared_experts"] = moe.shared_ffn() > 0 ? Json(moe.shared_ffn() / moe.ffn()) : Json(nullptr);
  c["first_k_dense_replace"] = moe.first_dense();
  c["moe_layer_freq"] = 1;
  c["routed_scaling_factor"] = moe.scale();
  c["norm_topk_prob"] = moe.normalize();
  c["scoring_func"] = v3 ? "sigmoid" : "softmax";
  c["topk_method"] = v3 ? "noaux_tc" : (moe.groups() > 1 ? "group_limited_greedy" : "greedy");
  c["n_group"] = moe.groups();
  c["topk_group"] = moe.top_groups();
  if (v3) c["num_nextn_predict_layers"] = MtpLayers(m);
}

void WriteMla(const v1::ModelSpec& m, Json& c) {
  const v1::MlaSpec& a = m.mla();
  c["num_key_value_heads"] = m.heads();
  c["kv_lora_rank"] = a.kv_rank();
  c["q_lora_rank"] = a.q_rank() > 0 ? Json(a.q_rank()) : Json(nullptr);
  c["qk_nope_head_dim"] = a.nope_dim();
  c["qk_rope_head_dim"] = a.rope_dim();
  c["v_head_dim"] = a.v_dim();
  if (m.architecture() == v1::ARCHITECTURE_DEEPSEEK_V3)
    c["rope_interleave"] = m.rope().interleaved();
}

void WriteLlamaLike(const v1::ModelSpec& m, Json& c) {
  c["num_hidden_layers"] = m.layers();
  c["hidden_size"] = m.hidden();
  c["intermediate_size"] = m.ffn();
  c["num_attention_heads"] = m.heads();
  c["max_position_embeddings"] = m.max_positions();
  c["rms_norm_eps"] = m.norm_eps();
  c["hidden_act"] = "silu";
  c["rope_theta"] = m.rope_theta();
  c["rope_scaling"] = RopeScaling(m);
  c.erase("rope_parameters");
  c["attention_dropout"] = 0.0;
  c["attention_bias"] = m.output_bias();
  if (m.architecture() == v1::ARCHITECTURE_LLAMA) c["mlp_bias"] = m.mlp_bias();
  if (IsMla(m)) {
    WriteMla(m, c);
  } else {
    c["num_key_value_heads"] = m.kv_heads();
    c["head_dim"] = m.head_dim();
    WriteWindow(m, c);
  }
  if (HasExperts(m)) WriteMoe(m, c);
  if (m.architecture() == v1::ARCHITECTURE_GPT_OSS) {
    c["swiglu_limit"] = m.swiglu_limit();
    c["swiglu_alpha"] = m.swiglu_alpha();
  }
}

}  // namespace

absl::StatusOr<std::string> HubConfigOf(const v1::ModelSpec& model, absl::string_view dtype,
                                        absl::string_view base) {
  Json config = base.empty() ? Json::object()
                             : Json::parse(base.begin(), base.end(), nullptr,
                                           /*allow_exceptions=*/false);
  if (!config.is_object()) config = Json::object();
  const ArchitectureName* name = FindArchitecture(model.architecture());
  if (name == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.architecture is not set; it is one of ", AllModelTypes()));
  }
  config["architectures"] = {name->class_name};
  config["model_type"] = name->model_type;
  config.erase("quantization_config");
  config.erase("auto_map");  // Python files, which do not go along
  config.erase("dtype");
  config["torch_dtype"] = std::string(dtype);
  config["vocab_size"] = model.vocab();
  config["initializer_range"] = model.init_std();
  config["tie_word_embeddings"] = model.tie_embeddings();
  config["use_cache"] = true;
  model.architecture() == v1::ARCHITECTURE_GPT2 ? WriteGpt2(model, config)
                                                : WriteLlamaLike(model, config);
  std::string text = config.dump(2, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  // What does not come back as it was has no place in this architecture's class.
  MT_ASSIGN_OR_RETURN(HubConfig again, ParseHubConfig(text, "config.json to write"));
  MT_RETURN_IF_ERROR(ResolveModel(&again.model));
  const std::vector<std::string> lost = ModelDifferences(model, again.model, false);
  if (!lost.empty()) {
    return absl::UnimplementedError(
        absl::StrCat("Hugging Face's ", name->class_name,
                     " has no place for this model: ", absl::StrJoin(lost, "; ")));
  }
  return text + "\n";
}

}  // namespace mt
