#include "common/spec/architectures.h"

#include <google/protobuf/text_format.h>

#include "common/check.h"
#include "common/spec/model_traits.h"
#include "common/spec/presets.h"

namespace mt {
namespace {

// A table of this file.
v1::ModelSpec Parsed(const char* text) {
  v1::ModelSpec model;
  const bool parsed = google::protobuf::TextFormat::ParseFromString(text, &model);
  MT_CHECK(parsed) << text;
  return model;
}

// Over a plain Llama: RMS norms, rotary positions, SwiGLU, no biases, an own head.
const char* TraitsText(v1::Architecture architecture) {
  switch (architecture) {
    case v1::ARCHITECTURE_QWEN2:
      return "qkv_bias: true";
    case v1::ARCHITECTURE_QWEN3:
      return "qk_norm: true";
    case v1::ARCHITECTURE_GPT2:
      return "norm: NORM_LAYER position: POSITION_LEARNED activation: ACTIVATION_GELU_TANH "
             "qkv_bias: true output_bias: true mlp_bias: true tie_embeddings: true";
    case v1::ARCHITECTURE_MIXTRAL:
      return "moe { score: SCORE_SOFTMAX_TOP_K }";
    case v1::ARCHITECTURE_QWEN3_MOE:
      return "qk_norm: true moe { score: SCORE_SOFTMAX }";
    case v1::ARCHITECTURE_DEEPSEEK_V2:
      return "rope { interleaved: true } "
             "moe { score: SCORE_SOFTMAX normalize: false group_score: GROUP_SCORE_MAX "
             "balance: BALANCE_SEQUENCE }";
    case v1::ARCHITECTURE_DEEPSEEK_V3:
      return "rope { interleaved: true } "
             "moe { score: SCORE_SIGMOID group_score: GROUP_SCORE_TOP_2 selection_bias: true "
             "balance: BALANCE_SEQUENCE }";
    case v1::ARCHITECTURE_GPT_OSS:
      return "qkv_bias: true output_bias: true mlp_bias: true sinks: true "
             "swiglu_limit: 7 swiglu_alpha: 1.702 swiglu_offset: 1 window { period: 2 } "
             "moe { score: SCORE_SOFTMAX_TOP_K router_bias: true }";
    default:
      return "";
  }
}

// What `whole` has switched off says nothing any more, unless the user says it.
void DropWhatIsOff(const v1::ModelSpec& whole, v1::ModelSpec* inherited) {
  if (!IsMla(whole)) inherited->clear_mla();
  if (!HasExperts(whole)) inherited->clear_moe();
  if (MtpLayers(whole) == 0) inherited->clear_mtp();
  if (whole.window().size() == 0) inherited->clear_window();
  if (!IsGated(whole)) {
    inherited->clear_swiglu_limit();
    inherited->clear_swiglu_alpha();
    inherited->clear_swiglu_offset();
  }
  const v1::RopeSpec& rope = whole.rope();
  if (HasLearnedPositions(whole)) {
    inherited->clear_rope();
  } else if (rope.scaling() <= v1::RopeSpec::SCALING_NONE && inherited->has_rope()) {
    v1::RopeSpec kept;
    if (inherited->rope().has_interleaved()) kept.set_interleaved(inherited->rope().interleaved());
    *inherited->mutable_rope() = kept;
  }
}

// What a model has that says nothing else: a plain Llama, and of each trait that is on, its usual numbers.
v1::ModelSpec DefaultsOf(const v1::ModelSpec& whole) {
  v1::ModelSpec model = Parsed(
      "rope_theta: 10000 norm_eps: 1e-5 init_std: 0.02 tie_embeddings: false "
      "norm: NORM_RMS position: POSITION_ROPE activation: ACTIVATION_SWIGLU "
      "qkv_bias: false output_bias: false mlp_bias: false qk_norm: false sinks: false");
  const auto add = [&](bool on, const char* text) {
    if (on) model.MergeFrom(Parsed(text));
  };
  const v1::RopeSpec::Scaling scaling = whole.rope().scaling();
  add(!HasLearnedPositions(whole), "rope { scaling: SCALING_NONE interleaved: false }");
  add(scaling == v1::RopeSpec::SCALING_LLAMA3,
      "rope { low_freq_factor: 1 high_freq_factor: 4 original_max_positions: 8192 }");
  add(scaling == v1::RopeSpec::SCALING_YARN,
      "rope { beta_fast: 32 beta_slow: 1 original_max_positions: 4096 truncate: true }");
  add(IsGated(whole), "swiglu_limit: 0 swiglu_alpha: 1 swiglu_offset: 0");
  add(whole.window().size() != 0, "window { first_layer: 0 period: 1 }");
  add(IsMla(whole), "mla { q_rank: 0 nope_dim: 128 rope_dim: 64 v_dim: 128 }");
  add(HasExperts(whole),
      "moe { top_k: 2 shared_ffn: 0 first_dense: 0 score: SCORE_SOFTMAX normalize: true scale: 1 "
      "groups: 1 group_score: GROUP_SCORE_MAX router_bias: false selection_bias: false "
      "balance_coefficient: 0 z_loss: 0 capacity_factor: 0 }");
  add(HasExperts(whole) && whole.moe().selection_bias(), "moe { selection_bias_rate: 1e-3 }");
  add(HasExperts(whole) && whole.moe().capacity_factor() > 0, "moe { drop: DROP_PROBABILITY }");
  add(MtpLayers(whole) > 0, "mtp { loss_coefficient: 0.1 }");
  return model;
}

// Defaults that follow from other sizes.
void FillSizes(v1::ModelSpec* m) {
  if (m->kv_heads() == 0) m->set_kv_heads(m->heads());
  if (IsMla(*m) && m->head_dim() == 0) m->set_head_dim(KeyHeadDim(*m));
  if (m->head_dim() == 0 && m->heads() > 0 && m->hidden() % m->heads() == 0)
    m->set_head_dim(m->hidden() / m->heads());
  if (!HasExperts(*m)) return;
  v1::MoeSpec* moe = m->mutable_moe();
  if (moe->ffn() == 0) moe->set_ffn(m->ffn());
  // A dense width that no block has is not asked for.
  if (m->ffn() == 0 && moe->first_dense() == 0) m->set_ffn(moe->ffn());
  if (moe->top_groups() == 0) moe->set_top_groups(moe->groups());
  if (moe->balance() == v1::MoeSpec::BALANCE_UNSPECIFIED) {
    moe->set_balance(moe->balance_coefficient() > 0 ? v1::MoeSpec::BALANCE_BATCH
                                                    : v1::MoeSpec::BALANCE_NONE);
  }
}

}  // namespace

v1::ModelSpec TraitsOf(v1::Architecture architecture) {
  v1::ModelSpec traits = Parsed(TraitsText(architecture));
  traits.set_architecture(architecture);
  return traits;
}

absl::Status ResolveModel(v1::ModelSpec* model) {
  v1::ModelSpec published;
  if (!model->preset().empty() && !IsFolderPreset(model->preset())) {
    absl::StatusOr<v1::ModelSpec> preset = PresetModel(model->preset());
    if (!preset.ok()) return Annotate(preset.status(), "model.preset");
    published = std::move(*preset);
  }
  v1::Architecture architecture = model->architecture();
  if (architecture == v1::ARCHITECTURE_UNSPECIFIED) architecture = published.architecture();
  if (architecture == v1::ARCHITECTURE_UNSPECIFIED) architecture = v1::ARCHITECTURE_LLAMA;

  v1::ModelSpec inherited = TraitsOf(architecture);
  inherited.MergeFrom(published);
  inherited.set_architecture(architecture);
  v1::ModelSpec whole = inherited;
  whole.MergeFrom(*model);
  DropWhatIsOff(whole, &inherited);

  v1::ModelSpec resolved = DefaultsOf(whole);
  resolved.MergeFrom(inherited);
  resolved.MergeFrom(*model);
  FillSizes(&resolved);
  *model = std::move(resolved);
  return absl::OkStatus();
}

}  // namespace mt
