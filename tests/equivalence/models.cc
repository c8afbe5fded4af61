#include "tests/equivalence/models.h"

#include <functional>
#include <utility>

#include "common/check.h"
#include "common/spec/model_traits.h"
#include "google/protobuf/text_format.h"

namespace mt::equivalence {
namespace {

SmallModel Make(std::string name, const std::vector<std::function<void(v1::ModelSpec*)>>& traits) {
  SmallModel made{.name = std::move(name), .model = SmallJob().model()};
  for (const auto& trait : traits) trait(&made.model);
  return made;
}

// Heads of 10 query and key numbers and of 5 value numbers.
void Latent(v1::ModelSpec* m) {
  v1::MlaSpec& mla = *m->mutable_mla();
  mla.set_kv_rank(12);
  mla.set_nope_dim(6);
  mla.set_rope_dim(4);
  mla.set_v_dim(5);
  m->mutable_rope()->set_interleaved(true);
}
void LatentQueries(v1::ModelSpec* m) { m->mutable_mla()->set_q_rank(14); }
void TokenAfterNext(v1::ModelSpec* m) {
  m->mutable_mtp()->set_layers(1);
  m->mutable_mtp()->set_loss_coefficient(0.3);
}
void Tied(v1::ModelSpec* m) { m->set_tie_embeddings(true); }

void QkvBias(v1::ModelSpec* m) { m->set_qkv_bias(true); }
void OutputBias(v1::ModelSpec* m) { m->set_output_bias(true); }
void MlpBias(v1::ModelSpec* m) { m->set_mlp_bias(true); }
// Heads have 48 numbers together, the stream has 24.
void NormedHeads(v1::ModelSpec* m) {
  m->set_qk_norm(true);
  m->set_head_dim(6);
}
void Window(v1::ModelSpec* m) { m->mutable_window()->set_size(3); }
void EverySecondWindow(v1::ModelSpec* m) {
  Window(m);
  m->mutable_window()->set_period(2);
}
void Sinks(v1::ModelSpec* m) { m->set_sinks(true); }
void LayerNorm(v1::ModelSpec* m) { m->set_norm(v1::ModelSpec::NORM_LAYER); }
void Gelu(v1::ModelSpec* m) { m->set_activation(v1::ModelSpec::ACTIVATION_GELU_TANH); }
void ExactGelu(v1::ModelSpec* m) { m->set_activation(v1::ModelSpec::ACTIVATION_GELU); }
// One position more than a sequence has.
void LearnedPositions(v1::ModelSpec* m) {
  m->set_position(v1::ModelSpec::POSITION_LEARNED);
  m->set_max_positions(9);
}
void ClampedSwiglu(v1::ModelSpec* m) {
  m->set_swiglu_limit(0.4);
  m->set_swiglu_alpha(1.702);
  m->set_swiglu_offset(1);
}
// Four pairs of a short context, all of them stretched differently.
void Yarn(v1::ModelSpec* m) {
  m->set_head_dim(8);
  m->set_rope_theta(100);
  v1::RopeSpec& rope = *m->mutable_rope();
  rope.set_scaling(v1::RopeSpec::SCALING_YARN);
  rope.set_factor(4);
  rope.set_original_max_positions(16);
  rope.set_beta_fast(2);
  rope.set_beta_slow(0.5);
  rope.set_truncate(false);
}

// Traits in text format.
std::function<void(v1::ModelSpec*)> Text(const char* text) {
  return [text](v1::ModelSpec* m) {
    v1::ModelSpec traits;
    MT_CHECK(google::protobuf::TextFormat::ParseFromString(text, &traits)) << text;
    m->MergeFrom(traits);
  };
}
// Ways of routing, each with another way of balancing and of dropping.
constexpr char kMixtral[] = R"(
    moe { experts: 6 top_k: 2 ffn: 12 score: SCORE_SOFTMAX_TOP_K normalize: true scale: 1 groups: 1 top_groups: 1
          balance: BALANCE_BATCH balance_coefficient: 0.05 z_loss: 0.01 })";
constexpr char kQwen3[] = R"(
    moe { experts: 8 top_k: 3 ffn: 8 score: SCORE_SOFTMAX normalize: true scale: 1 groups: 1 top_groups: 1
          balance: BALANCE_GLOBAL balance_coefficient: 0.05 capacity_factor: 1 drop: DROP_PROBABILITY })";
constexpr char kDeepSeek[] = R"(
    moe { experts: 8 top_k: 3 ffn: 8 shared_ffn: 16 first_dense: 1 score: SCORE_SIGMOID normalize: true scale: 2.5
          groups: 4 top_groups: 2 group_score: GROUP_SCORE_TOP_2 selection_bias: true selection_bias_rate: 0.01
          balance: BALANCE_SEQUENCE balance_coefficient: 0.05 })";
// DeepSeek-V2's choice of groups, and its mscale.
constexpr char kDeepSeekV2[] = R"(
    moe { experts: 8 top_k: 3 ffn: 8 shared_ffn: 16 first_dense: 1 score: SCORE_SOFTMAX normalize: false scale: 1.5
          groups: 4 top_groups: 2 group_score: GROUP_SCORE_MAX balance: BALANCE_SEQUENCE balance_coefficient: 0.05 }
    rope { mscale: 0.707 mscale_all_dim: 0.707 })";
constexpr char kGptOss[] = R"(
    swiglu_limit: 0.3 swiglu_alpha: 1.702 swiglu_offset: 1 mlp_bias: true
    moe { experts: 6 top_k: 2 ffn: 12 score: SCORE_SOFTMAX_TOP_K normalize: true scale: 1 groups: 1 top_groups: 1
          router_bias: true z_loss: 0.02 balance: BALANCE_NONE capacity_factor: 0.5 drop: DROP_POSITION })";

}  // namespace

std::vector<SmallModel> AllModels() {
  return {
      Make("mla", {Latent}),
      Make("mla_q", {Latent, LatentQueries}),
      Make("mtp", {TokenAfterNext}),
      Make("mtp_tied", {TokenAfterNext, Tied}),
      Make("mla_mtp", {Latent, LatentQueries, TokenAfterNext}),
      Make("qkv_bias", {QkvBias}),
      Make("qk_norm", {NormedHeads}),
      Make("window", {Window}),
      Make("gpt2", {LayerNorm, LearnedPositions, Gelu, QkvBias, OutputBias, MlpBias, Tied}),
      Make("gelu", {LayerNorm, ExactGelu, LearnedPositions}),
      Make("sinks", {Sinks, EverySecondWindow, QkvBias, OutputBias, MlpBias, ClampedSwiglu, Yarn}),
      Make("moe_mixtral", {Text(kMixtral)}),
      Make("moe_qwen3", {Text(kQwen3)}),
      Make("moe_deepseek", {Text(kDeepSeek)}),
      Make("gpt_oss", {Text(kGptOss), Sinks, EverySecondWindow, QkvBias, OutputBias}),
      Make("deepseek_v2", {Latent, Yarn, Text(kDeepSeekV2)}),
      Make("deepseek_v3", {Text(kDeepSeek), Latent, LatentQueries, TokenAfterNext})};
}

void DropRounding(const SmallModel& model, LogicalState* gradients) {
  if (!HasLearnedPositions(model.model) || model.model.sinks()) return;
  std::erase_if(*gradients,
                [](const auto& entry) { return entry.first.ends_with(".k_proj.bias"); });
}

v1::JobSpec SmallJobOf(const SmallModel& model) {
  v1::JobSpec spec = SmallJob();
  *spec.mutable_model() = model.model;
  return spec;
}

}  // namespace mt::equivalence
