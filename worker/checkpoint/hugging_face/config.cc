#include "worker/checkpoint/hugging_face/config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_join.h"
#include "common/spec/architectures.h"
#include "common/spec/model_traits.h"
#include "worker/checkpoint/hugging_face/architecture_names.h"
#include "worker/checkpoint/hugging_face/config_reader.h"

namespace mt {
namespace {

using Json = nlohmann::ordered_json;

// Fills a HubConfig, architecture by architecture. Errors stay in the reader.
class Importer {
 public:
  Importer(ConfigReader* reader, HubConfig* config)
      : r_(*reader), config_(*config), m_(config->model) {}

  void Run(v1::Architecture architecture) {
    m_.set_architecture(architecture);
    Quantization();
    config_.dtype = r_.String("dtype", r_.String("torch_dtype", ""));
    architecture == v1::ARCHITECTURE_GPT2 ? Gpt2() : LlamaLike();
    if (m_.layers() * std::max<int64_t>(1, m_.moe().experts()) > kMostExperts) {
      r_.Refuse("num_hidden_layers",
                absl::StrCat("has more experts in all blocks together than ", kMostExperts));
    }
  }

 private:
  bool Is(v1::Architecture architecture) const { return m_.architecture() == architecture; }
  bool IsDeepSeek() const {
    return Is(v1::ARCHITECTURE_DEEPSEEK_V2) || Is(v1::ARCHITECTURE_DEEPSEEK_V3);
  }
  bool HasMoeKeys() const {
    return IsDeepSeek() || Is(v1::ARCHITECTURE_MIXTRAL) || Is(v1::ARCHITECTURE_QWEN3_MOE) ||
           Is(v1::ARCHITECTURE_GPT_OSS);
  }

  void Quantization() {
    if (!r_.Has("quantization_config")) return;
    ConfigReader q = r_.Object("quantization_config");
    const std::string method = q.String("quant_method", "");
    if (method == "mxfp4" && Is(v1::ARCHITECTURE_GPT_OSS)) return;
    if (method != "fp8") {
      q.Refuse("quant_method",
               "weights in this form cannot be read; take the model's folder in "
               "bfloat16");
      return;
    }
    const std::vector<int64_t> block = q.Integers("weight_block_size");
    if (block.size() != 2 || block[0] < 1 || block[1] < 1 || block[0] > 1 << 20 ||
        block[1] > 1 << 20) {
      q.Refuse("weight_block_size", "blocks of rows and columns are needed: [128, 128]");
      return;
    }
    config_.fp8_block_rows = block[0];
    config_.fp8_block_columns = block[1];
  }

  // A share of something that training alone knows: told and left out.
  void Dropout(const char* key) {
    if (r_.Number(key, 0) != 0) {
      config_.notes.push_back(absl::StrCat(key, " = ", r_.Text(key),
                                           " is left out: there is no dropout in training here"));
    }
  }
  void TrainingOnly(const char* key, const char* instead) {
    if (r_.Number(key, 0) != 0) {
      config_.notes.push_back(
          absl::StrCat(key, " = ", r_.Text(key), " is left to the job: set ", instead));
    }
  }

  void Gpt2() {
    m_.set_layers(r_.Size("n_layer", 10'000));
    m_.set_hidden(r_.Size("n_embd", 1 << 20));
    m_.set_heads(r_.Size("n_head", 1 << 16));
    m_.set_ffn(r_.Size("n_inner", 1 << 22, 4 * m_.hidden()));
    m_.set_vocab(r_.Size("vocab_size", 1 << 24));
    m_.set_max_positions(r_.Size("n_positions", 1 << 24, 1024));
    m_.set_norm_eps(r_.Positive("layer_norm_epsilon", 1e-5));
    m_.set_init_std(r_.Positive("initializer_range", 0.02));
    m_.set_tie_embeddings(r_.Bool("tie_word_embeddings", true));
    const std::string activation = r_.String("activation_function", "gelu_new");
    if (activation == "gelu") {
      m_.set_activation(v1::ModelSpec::ACTIVATION_GELU);
    } else if (activation != "gelu_new" && activation != "gelu_pytorch_tanh") {
      r_.Refuse("activation_function", "the engine has gelu_new, gelu_pytorch_tanh and gelu");
    }
    r_.Only("scale_attn_weights", true, "attention without its scale");
    r_.Only("scale_attn_by_inverse_layer_idx", false, "a scale per layer");
    r_.Only("add_cross_attention", false, "cross-attention");
    if (m_.heads() > 0 && m_.hidden() % m_.heads() != 0)
      r_.Refuse("n_head", absl::StrCat("does not divide n_embd = ", m_.hidden()));
    for (const char* key : {"resid_pdrop", "embd_pdrop", "attn_pdrop"}) Dropout(key);
  }

  void LlamaLike() {
    m_.set_layers(r_.Size("num_hidden_layers", 10'000));
    m_.set_hidden(r_.Size("hidden_size", 1 << 20));
    m_.set_heads(r_.Size("num_attention_heads", 1 << 16));
    m_.set_ffn(r_.Size("intermediate_size", 1 << 22));
    m_.set_vocab(r_.Size("vocab_size", 1 << 24));
    m_.set_max_positions(r_.Size("max_position_embeddings", int64_t{1} << 30, 2048));
    const bool eps_is_small = !Is(v1::ARCHITECTURE_MIXTRAL) && !Is(v1::ARCHITECTURE_GPT_OSS);
    m_.set_norm_eps(r_.Positive("rms_norm_eps", eps_is_small ? 1e-6 : 1e-5));
    m_.set_init_std(r_.Positive("initializer_range", 0.02));
    m_.set_tie_embeddings(r_.Bool("tie_word_embeddings", false));
    if (const std::string act = r_.String("hidden_act", "silu"); act != "silu" && act != "swish")
      r_.Refuse("hidden_act", "the engine has silu");
    if (r_.Number("partial_rotary_factor", 1) != 1)
      r_.Refuse("partial_rotary_factor", "the engine rotates whole heads");
    Dropout("attention_dropout");
    IsDeepSeek() ? Mla() : Attention();
    Rope();
    if (!IsDeepSeek()) Window();
    if (HasMoeKeys()) Moe();
  }

  void Attention() {
    m_.set_kv_heads(r_.Size("num_key_value_heads", 1 << 16, m_.heads()));
    if (m_.kv_heads() > 0 && m_.heads() % m_.kv_heads() != 0)
      r_.Refuse("num_key_value_heads",
                absl::StrCat("does not divide num_attention_heads = ", m_.heads()));
    int64_t head_dim = m_.heads() > 0 ? m_.hidden() / m_.heads() : 0;
    if (Is(v1::ARCHITECTURE_QWEN3)) head_dim = 128;
    if (Is(v1::ARCHITECTURE_GPT_OSS)) head_dim = 64;
    m_.set_head_dim(r_.Size("head_dim", 1 << 12, head_dim));
    if (m_.head_dim() == 0) r_.Refuse("num_attention_heads", "are more than hidden_size");
    if (Is(v1::ARCHITECTURE_LLAMA) || Is(v1::ARCHITECTURE_QWEN3) ||
        Is(v1::ARCHITECTURE_QWEN3_MOE) || Is(v1::ARCHITECTURE_GPT_OSS)) {
      const bool bias = r_.Bool("attention_bias", Is(v1::ARCHITECTURE_GPT_OSS));
      m_.set_qkv_bias(bias);
      m_.set_output_bias(bias);
    }
    if (Is(v1::ARCHITECTURE_LLAMA)) m_.set_mlp_bias(r_.Bool("mlp_bias", false));
    if (Is(v1::ARCHITECTURE_GPT_OSS)) {
      m_.set_swiglu_limit(r_.Number("swiglu_limit", 7));
      m_.set_swiglu_alpha(r_.Positive("swiglu_alpha", 1.702));
    }
  }

  void Mla() {
    if (r_.Size("num_key_value_heads", 1 << 16, m_.heads()) != m_.heads())
      r_.Refuse("num_key_value_heads", "latent attention has as many as num_attention_heads");
    v1::MlaSpec& a = *m_.mutable_mla();
    a.set_kv_rank(r_.Size("kv_lora_rank", 1 << 20, 512));
    a.set_q_rank(r_.IsNull("q_lora_rank") ? 0 : r_.Size("q_lora_rank", 1 << 20, 1536));
    a.set_nope_dim(r_.Size("qk_nope_head_dim", 1 << 12, 128));
    a.set_rope_dim(r_.Size("qk_rope_head_dim", 1 << 12, 64));
    a.set_v_dim(r_.Size("v_head_dim", 1 << 12, 128));
    r_.Only("attention_bias", false, "biases of latent attention");
    r_.Only("mlp_bias", false, "biases of the feed-forward");
    if (Is(v1::ARCHITECTURE_DEEPSEEK_V3) && !r_.Bool("rope_interleave", true))
      m_.mutable_rope()->set_interleaved(false);
  }

  // Old files: rope_theta and rope_scaling; transformers 5: rope_parameters with both.
  void Rope() {
    double theta = 10000;
    if (Is(v1::ARCHITECTURE_MIXTRAL)) theta = 1e6;
    if (Is(v1::ARCHITECTURE_GPT_OSS)) theta = 150000;
    const bool is_new = r_.Has("rope_parameters");
    ConfigReader rope = r_.Object(is_new ? "rope_parameters" : "rope_scaling");
    m_.set_rope_theta(is_new ? rope.Positive("rope_theta", r_.Positive("rope_theta", theta))
                             : r_.Positive("rope_theta", theta));
    if (!is_new && !r_.Mentions("rope_scaling") && Is(v1::ARCHITECTURE_GPT_OSS)) {
      r_.Refuse("rope_scaling", "is needed for gpt_oss (null, or yarn as published)");
      return;
    }
    if (!rope.IsThere()) return;
    const char* key = rope.Has("rope_type") ? "rope_type" : "type";
    const std::string type = rope.String(key, "default");
    if (type == "default") return;
    v1::RopeSpec& s = *m_.mutable_rope();
    s.set_factor(rope.Positive("factor", 0));
    const auto original = [&](int64_t otherwise) {
      s.set_original_max_positions(
          rope.Size("original_max_position_embeddings", int64_t{1} << 30, otherwise));
    };
    if (type == "linear") {
      s.set_scaling(v1::RopeSpec::SCALING_LINEAR);
    } else if (type == "llama3") {
      s.set_scaling(v1::RopeSpec::SCALING_LLAMA3);
      s.set_low_freq_factor(rope.Positive("low_freq_factor", 0));
      s.set_high_freq_factor(rope.Positive("high_freq_factor", 0));
      original(0);
    } else if (type == "yarn") {
      s.set_scaling(v1::RopeSpec::SCALING_YARN);
      original(m_.max_positions());
      s.set_beta_fast(rope.Positive("beta_fast", 32));
      s.set_beta_slow(rope.Positive("beta_slow", 1));
      s.set_truncate(rope.Bool("truncate", true));
      if (rope.Has("attention_factor"))
        s.set_attention_factor(rope.Positive("attention_factor", 0));
      if (rope.Number("mscale", 0) != 0) s.set_mscale(rope.Positive("mscale", 0));
      if (rope.Number("mscale_all_dim", 0) != 0) {
        s.set_mscale_all_dim(rope.Positive("mscale_all_dim", 0));
        if (!IsDeepSeek()) rope.Refuse("mscale_all_dim", "only DeepSeek's attention knows it");
      }
    } else {
      rope.Refuse(key, "the engine has default, linear, llama3 and yarn");
    }
  }

  void Window() {
    const bool has_switch =
        Is(v1::ARCHITECTURE_QWEN2) || Is(v1::ARCHITECTURE_QWEN3) || Is(v1::ARCHITECTURE_QWEN3_MOE);
    if (Is(v1::ARCHITECTURE_LLAMA) || (has_switch && !r_.Bool("use_sliding_window", false))) return;
    const bool mistral = Is(v1::ARCHITECTURE_MISTRAL);
    if (mistral || Is(v1::ARCHITECTURE_MIXTRAL) || Is(v1::ARCHITECTURE_QWEN3_MOE)) {
      if (r_.Has("sliding_window") || (mistral && !r_.Mentions("sliding_window")))
        m_.mutable_window()->set_size(r_.Size("sliding_window", int64_t{1} << 30, 4096));
      return;
    }
    if (r_.IsNull("sliding_window")) return;
    const int64_t size =
        r_.Size("sliding_window", int64_t{1} << 30, Is(v1::ARCHITECTURE_GPT_OSS) ? 128 : 4096);
    std::vector<bool> has(static_cast<size_t>(m_.layers()));
    if (r_.Has("layer_types")) {
      const std::vector<std::string> types = r_.Strings("layer_types");
      if (types.size() != has.size()) {
        r_.Refuse("layer_types", absl::StrCat("num_hidden_layers is ", m_.layers()));
        return;
      }
      for (size_t i = 0; i < has.size(); ++i) {
        has[i] = types[i] == "sliding_attention";
        if (!has[i] && types[i] != "full_attention") {
          r_.Refuse("layer_types", "the engine has sliding_attention and full_attention");
          return;
        }
      }
    } else {
      const int64_t first = r_.Size("max_window_layers", 10'000, 28, /*least=*/0);
      for (int64_t i = 0; i < m_.layers(); ++i)
        has[i] = Is(v1::ARCHITECTURE_GPT_OSS) ? i % 2 == 0 : i >= first;
    }
    SetWindow(size, has);
  }

  // The blocks that have a window as first and period.
  void SetWindow(int64_t size, const std::vector<bool>& has) {
    const int64_t layers = m_.layers();
    int64_t first = 0;
    while (first < layers && !has[first]) ++first;
    if (first == layers) return;
    int64_t next = first + 1;
    while (next < layers && !has[next]) ++next;
    v1::WindowSpec& w = *m_.mutable_window();
    w.set_size(size);
    w.set_first_layer(first);
    w.set_period(next - first);
    // gpt-oss with one or two blocks: the period of the published ones says the same.
    if (next == layers && Is(v1::ARCHITECTURE_GPT_OSS) && first == 0) w.set_period(2);
    for (int64_t i = 0; i < layers; ++i) {
      if ((WindowOf(m_, i) > 0) != has[i]) {
        r_.Refuse("layer_types", "blocks with a window must come at regular distances");
        return;
      }
    }
  }

  void Moe() {
    v1::MoeSpec& moe = *m_.mutable_moe();
    const bool local = Is(v1::ARCHITECTURE_MIXTRAL) || Is(v1::ARCHITECTURE_GPT_OSS);
    const char* experts =
        local ? "num_local_experts" : (IsDeepSeek() ? "n_routed_experts" : "num_experts");
    moe.set_experts(r_.Size(experts, 4096));
    moe.set_top_k(r_.Size("num_experts_per_tok", 4096));
    if (moe.top_k() > moe.experts())
      r_.Refuse("num_experts_per_tok", absl::StrCat("is more than ", experts));
    moe.set_ffn(local ? m_.ffn() : r_.Size("moe_intermediate_size", 1 << 22));
    TrainingOnly("router_aux_loss_coef", "model.moe.balance_coefficient");
    TrainingOnly("aux_loss_alpha", "model.moe.balance_coefficient");
    TrainingOnly("router_jitter_noise", "nothing (there is no jitter here)");
    if (Is(v1::ARCHITECTURE_QWEN3_MOE)) QwenMoe(moe);
    if (IsDeepSeek()) DeepSeekMoe(moe);
  }

  void QwenMoe(v1::MoeSpec& moe) {
    moe.set_normalize(r_.Bool("norm_topk_prob", false));
    if (r_.Number("decoder_sparse_step", 1) != 1)
      r_.Refuse("decoder_sparse_step", "the engine has experts in every block from the first on");
    const std::vector<int64_t> dense = r_.Integers("mlp_only_layers");
    for (size_t i = 0; i < dense.size(); ++i) {
      if (dense[i] != static_cast<int64_t>(i)) {
        r_.Refuse("mlp_only_layers", "only the first blocks may be dense: [0, 1, ...]");
        return;
      }
    }
    moe.set_first_dense(static_cast<int64_t>(dense.size()));
  }

  void DeepSeekMoe(v1::MoeSpec& moe) {
    const bool v3 = Is(v1::ARCHITECTURE_DEEPSEEK_V3);
    moe.set_first_dense(r_.Size("first_k_dense_replace", 10'000, v3 ? 3 : 0, /*least=*/0));
    if (r_.Number("moe_layer_freq", 1) != 1)
      r_.Refuse("moe_layer_freq", "the engine has experts in every block from the first on");
    const int64_t shared =
        r_.IsNull("n_shared_experts") ? 0 : r_.Size("n_shared_experts", 4096, v3 ? 1 : 2, 0);
    moe.set_shared_ffn(shared * moe.ffn());
    moe.set_scale(r_.Positive("routed_scaling_factor", v3 ? 2.5 : 1));
    const std::string method = r_.String("topk_method", v3 ? "noaux_tc" : "greedy");
    const std::string scoring = r_.String("scoring_func", v3 ? "sigmoid" : "softmax");
    if (scoring != (v3 ? "sigmoid" : "softmax"))
      r_.Refuse("scoring_func", absl::StrCat("this architecture has ", v3 ? "sigmoid" : "softmax"));
    if (v3 ? method != "noaux_tc" : method != "greedy" && method != "group_limited_greedy") {
      r_.Refuse("topk_method", v3 ? "this architecture has noaux_tc"
                                  : "this architecture has greedy and group_limited_greedy");
    }
    if (v3) {
      moe.set_normalize(r_.Bool("norm_topk_prob", true));
      const int64_t mtp = r_.Size("num_nextn_predict_layers", 1, 0, /*least=*/0);
      if (mtp > 0) m_.mutable_mtp()->set_layers(mtp);
    } else {
      // transformers ignores it, DeepSeek's own code then leaves out routed_scaling_factor; no published model has it.
      r_.Only("norm_topk_prob", false, "weights of DeepSeek-V2's experts that are normalised");
    }
    if (method == "greedy") return;
    moe.set_groups(r_.Size("n_group", 4096, v3 ? 8 : 0));
    moe.set_top_groups(r_.Size("topk_group", 4096, v3 ? 4 : 0));
    if (moe.groups() > 0 && moe.experts() % moe.groups() != 0)
      r_.Refuse("n_group", absl::StrCat("does not divide n_routed_experts = ", moe.experts()));
    if (moe.top_groups() > moe.groups()) r_.Refuse("topk_group", "is more than n_group");
  }

  ConfigReader& r_;
  HubConfig& config_;
  v1::ModelSpec& m_;
};

}  // namespace

absl::StatusOr<HubConfig> ParseHubConfig(absl::string_view json, const std::string& path) {
  const Json parsed = Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  absl::Status status;
  ConfigReader reader(&parsed, path, "", &status);
  const std::string type = reader.String("model_type", "");
  MT_RETURN_IF_ERROR(status);
  const ArchitectureName* name = FindModelType(type);
  if (name == nullptr) {
    return absl::UnimplementedError(absl::StrCat(
        path,
        ": model_type = ", reader.Has("model_type") ? reader.Text("model_type") : "(not there)",
        " is not an architecture that can be trained here; those are ", AllModelTypes()));
  }
  if (reader.Has("architectures")) {
    const std::vector<std::string> classes = reader.Strings("architectures");
    MT_RETURN_IF_ERROR(status);
    if (!classes.empty() && classes[0] != name->class_name) {
      return absl::UnimplementedError(
          absl::StrCat(path, ": architectures = ", reader.Text("architectures"),
                       ": only the language model, ", name->class_name, ", can be read"));
    }
  }
  HubConfig config;
  Importer(&reader, &config).Run(name->architecture);
  MT_RETURN_IF_ERROR(status);
  return config;
}

}  // namespace mt
