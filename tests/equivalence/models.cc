#include "tests/equivalence/models.h"

#include <functional>
#include <utility>

#include "common/spec/model_traits.h"

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
      Make("sinks", {Sinks, EverySecondWindow, QkvBias, OutputBias, MlpBias, ClampedSwiglu, Yarn})};
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
