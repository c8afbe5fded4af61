// The model section: each trait by itself, and those that exclude each other.
#include "absl/strings/strip.h"
#include "common/spec/defaults.h"
#include "common/spec/model_traits.h"
#include "common/spec/problems.h"

namespace mt {
namespace {

constexpr int64_t kMostHidden = 1 << 20, kMostHeads = 1 << 16;

// "llama3" of SCALING_LLAMA3.
std::string Text(const std::string& name, absl::string_view prefix) {
  return absl::AsciiStrToLower(absl::StripPrefix(name, prefix));
}

class ModelValidator {
 public:
  ModelValidator(const v1::JobSpec& spec, Problems* problems)
      : spec_(spec), m_(spec.model()), out_(*problems) {}

  void Run() {
    Sizes();
    out_.Within("model.mla.kv_rank", m_.mla().kv_rank(), 0, 1 << 20);
    IsMla(m_) ? Mla() : Heads();
    Positions();
    Rope();
    Window();
    Activation();
    HasExperts(m_) ? Moe() : NoMoe();
    Mtp();
    Family();
  }

 private:
  void Sizes() {
    out_.Size("model.layers", m_.layers(), 10'000);
    out_.Size("model.hidden", m_.hidden(), kMostHidden);
    out_.Size("model.heads", m_.heads(), kMostHeads);
    out_.Size("model.ffn", m_.ffn(), 1 << 22);
    out_.Size("model.vocab", m_.vocab(), 1 << 24);
    out_.Positive("model.rope_theta", m_.rope_theta());
    out_.Positive("model.norm_eps", m_.norm_eps());
    out_.Positive("model.init_std", m_.init_std());
    if (spec_.data().tokenizer() == "byte" && m_.vocab() > 0 && m_.vocab() < kByteVocabulary) {
      out_.Add("model.vocab", m_.vocab(), ": the byte tokenizer has ", kByteVocabulary,
               " ids; use at least that many");
    }
  }

  void Heads() {
    // Divisors are looked for only of sizes that are sane: those of 2^62 would take minutes.
    const bool heads = m_.heads() > 0 && m_.heads() <= kMostHeads,
               hidden = m_.hidden() > 0 && m_.hidden() <= kMostHidden;
    if (heads && hidden && m_.head_dim() == 0) {
      out_.Add("model.hidden", m_.hidden(), ": does not divide by model.heads = ", m_.heads(),
               "; set model.heads to ",
               Problems::Or(NearestCommonDivisors({m_.hidden()}, m_.heads())),
               ", or set model.head_dim");
    } else if (heads && hidden && out_.Size("model.head_dim", m_.head_dim(), 1 << 12) &&
               m_.head_dim() % 2 != 0 && !HasLearnedPositions(m_)) {
      out_.Add("model.head_dim", m_.head_dim(), ": rotary positions need an even number; use ",
               m_.head_dim() - 1, " or ", m_.head_dim() + 1);
    }
    if (heads && out_.Size("model.kv_heads", m_.kv_heads(), 1 << 16) &&
        m_.heads() % m_.kv_heads() != 0) {
      out_.Add("model.kv_heads", m_.kv_heads(), ": does not divide model.heads = ", m_.heads(),
               "; use ", Problems::Or(NearestCommonDivisors({m_.heads()}, m_.kv_heads())));
    }
    if (m_.mla().q_rank() != 0 || m_.mla().nope_dim() != 0 || m_.mla().rope_dim() != 0 ||
        m_.mla().v_dim() != 0) {
      out_.Add("model.mla.kv_rank",
               "0: the other keys of model.mla do nothing without it; set it, or "
               "delete model.mla");
    }
  }

  void Mla() {
    const v1::MlaSpec& a = m_.mla();
    out_.Within("model.mla.q_rank", a.q_rank(), 0, 1 << 20);
    out_.Size("model.mla.nope_dim", a.nope_dim(), 1 << 12);
    out_.Size("model.mla.v_dim", a.v_dim(), 1 << 12);
    if (out_.Size("model.mla.rope_dim", a.rope_dim(), 1 << 12) && a.rope_dim() % 2 != 0) {
      out_.Add("model.mla.rope_dim", a.rope_dim(), ": rotary positions need an even number; use ",
               a.rope_dim() - 1, " or ", a.rope_dim() + 1);
    }
    if (m_.kv_heads() != m_.heads()) {
      out_.Add("model.kv_heads", m_.kv_heads(),
               ": latent attention (model.mla) has a key for every head; delete it");
    }
    if (HasLearnedPositions(m_)) {
      out_.Add("model.position",
               "learned: latent attention (model.mla) has rotary ones; delete it, or model.mla");
    }
    for (const auto& [key, on] :
         {std::pair{"model.qkv_bias", m_.qkv_bias()}, std::pair{"model.qk_norm", m_.qk_norm()},
          std::pair{"model.output_bias", m_.output_bias()}, std::pair{"model.sinks", m_.sinks()},
          std::pair{"model.window.size", m_.window().size() > 0}}) {
      if (on) {
        out_.Add(key,
                 m_.window().size() > 0 && std::string(key) == "model.window.size"
                     ? absl::StrCat(m_.window().size())
                     : "true",
                 ": latent attention (model.mla) has none; delete it, or model.mla");
      }
    }
  }

  void Positions() {
    const int64_t sequence = spec_.data().sequence_length();
    out_.Within("model.max_positions", m_.max_positions(), 0, 1 << 30);
    if (!HasLearnedPositions(m_)) return;
    if (m_.max_positions() == 0) {
      out_.AddLine(absl::StrCat(
          "model.max_positions is not set; a table of learned positions has that many rows: set it "
          "to data.sequence_length = ",
          sequence, " or more"));
    } else if (sequence > m_.max_positions()) {
      out_.Add("data.sequence_length", sequence, ": the table of learned positions has ",
               m_.max_positions(), " rows; use at most that, or set model.max_positions");
    }
  }

  void Rope() {
    const v1::RopeSpec& r = m_.rope();
    const v1::RopeSpec::Scaling scaling = r.scaling();
    const bool llama3 = scaling == v1::RopeSpec::SCALING_LLAMA3,
               yarn = scaling == v1::RopeSpec::SCALING_YARN,
               linear = scaling == v1::RopeSpec::SCALING_LINEAR;
    const std::string scaled =
        Text(v1::RopeSpec::Scaling_Name(scaling == 0 ? v1::RopeSpec::SCALING_NONE : scaling),
             "SCALING_");
    const auto only = [&](absl::string_view key, double value, bool used, absl::string_view with) {
      if (value == 0 || used) return;
      out_.Add(absl::StrCat("model.rope.", key), value,
               ": does nothing with model.rope.scaling = ", scaled,
               "; delete it, or set scaling: ", with);
    };
    only("factor", r.factor(), llama3 || yarn || linear, "linear, llama3 or yarn");
    only("low_freq_factor", r.low_freq_factor(), llama3, "llama3");
    only("high_freq_factor", r.high_freq_factor(), llama3, "llama3");
    only("original_max_positions", static_cast<double>(r.original_max_positions()), llama3 || yarn,
         "llama3 or yarn");
    only("beta_fast", r.beta_fast(), yarn, "yarn");
    only("beta_slow", r.beta_slow(), yarn, "yarn");
    only("attention_factor", r.attention_factor(), yarn, "yarn");
    only("mscale", r.mscale(), yarn, "yarn");
    only("mscale_all_dim", r.mscale_all_dim(), yarn, "yarn");
    if (HasLearnedPositions(m_)) {
      if (scaling > v1::RopeSpec::SCALING_NONE)
        out_.Add("model.rope.scaling", scaled,
                 ": model.position = learned has no rotation; delete it");
      return;
    }
    if ((llama3 || yarn || linear) && !(r.factor() >= 1 && std::isfinite(r.factor()))) {
      out_.Add("model.rope.factor", r.factor(),
               ": how many times longer the context becomes; use 1 or more");
    }
    if (llama3 && !(r.low_freq_factor() > 0 && r.high_freq_factor() > r.low_freq_factor() &&
                    std::isfinite(r.high_freq_factor()))) {
      out_.Add("model.rope.high_freq_factor", r.high_freq_factor(),
               ": must be more than model.rope.low_freq_factor = ", r.low_freq_factor(),
               ", and both more than 0");
    }
    if (yarn && m_.rope_theta() > 0 && m_.rope_theta() <= 1) {
      out_.Add("model.rope_theta", m_.rope_theta(),
               ": model.rope.scaling = yarn needs more than 1; 10000 is usual");
    }
    if (yarn &&
        !(r.beta_slow() > 0 && r.beta_fast() > r.beta_slow() && std::isfinite(r.beta_fast()))) {
      out_.Add("model.rope.beta_fast", r.beta_fast(),
               ": must be more than model.rope.beta_slow = ", r.beta_slow(),
               ", and both more than 0");
    }
    if (llama3 || yarn)
      out_.Size("model.rope.original_max_positions", r.original_max_positions(), 1 << 30);
    for (const auto& [key, value] :
         {std::pair{"attention_factor", r.attention_factor()}, std::pair{"mscale", r.mscale()},
          std::pair{"mscale_all_dim", r.mscale_all_dim()}}) {
      if (value != 0) out_.Positive(absl::StrCat("model.rope.", key), value);
    }
  }

  void Window() {
    const v1::WindowSpec& w = m_.window();
    if (w.size() == 0) {
      if (w.first_layer() != 0) {
        out_.Add("model.window.first_layer", w.first_layer(),
                 ": does nothing without model.window.size; set that, or delete it");
      }
      return;
    }
    out_.Within("model.window.size", w.size(), 1, 1 << 30);
    out_.Within("model.window.first_layer", w.first_layer(), 0,
                std::max<int64_t>(m_.layers(), 1) - 1);
    out_.Within("model.window.period", w.period(), 1, 10'000);
  }

  void Activation() {
    if (IsGated(m_)) {
      out_.NotNegative("model.swiglu_limit", m_.swiglu_limit());
      out_.Positive("model.swiglu_alpha", m_.swiglu_alpha());
      if (!std::isfinite(m_.swiglu_offset()))
        out_.Add("model.swiglu_offset", m_.swiglu_offset(), ": must be a number; 0 is none");
      return;
    }
    const std::string activation =
        Text(v1::ModelSpec::Activation_Name(m_.activation()), "ACTIVATION_");
    for (const auto& [key, value] : {std::pair{"model.swiglu_limit", m_.swiglu_limit()},
                                     std::pair{"model.swiglu_alpha", m_.swiglu_alpha()},
                                     std::pair{"model.swiglu_offset", m_.swiglu_offset()}}) {
      if (value != 0) {
        out_.Add(key, value, ": does nothing with model.activation = ", activation,
                 "; delete it, or use swiglu");
      }
    }
    if (HasExperts(m_)) {
      out_.Add("model.activation", activation,
               ": experts (model.moe) have a gate; use swiglu, or delete model.moe");
    }
  }

  // What an expert's numbers must be among themselves, CheckSizes tells; here is what has no effect.
  void Moe() {
    const v1::MoeSpec& moe = m_.moe();
    out_.Within("model.moe.experts", moe.experts(), 1, 1 << 14);
    // Every expert of every block is listed by name, wherever a model is planned.
    if (m_.layers() > 0 && moe.experts() > kMostExperts / m_.layers()) {
      out_.Add("model.moe.experts", moe.experts(), ": model.layers = ", m_.layers(),
               " blocks have more than ", kMostExperts, " together; use at most ",
               kMostExperts / m_.layers());
    }
    out_.Size("model.moe.ffn", moe.ffn(), 1 << 22);
    out_.Within("model.moe.shared_ffn", moe.shared_ffn(), 0, 1 << 22);
    out_.Within("model.moe.first_dense", moe.first_dense(), 0, std::max<int64_t>(m_.layers(), 1));
    if (!moe.selection_bias() && moe.selection_bias_rate() != 0) {
      out_.Add("model.moe.selection_bias_rate", moe.selection_bias_rate(),
               ": does nothing without model.moe.selection_bias: true; set that, or delete it");
    }
    if (moe.capacity_factor() == 0 && moe.drop() != v1::MoeSpec::DROP_UNSPECIFIED) {
      out_.Add("model.moe.drop", Text(v1::MoeSpec::Drop_Name(moe.drop()), "DROP_"),
               ": nothing is dropped without model.moe.capacity_factor; set that, or delete it");
    }
  }

  void NoMoe() {
    const v1::MoeSpec& moe = m_.moe();
    if (moe.top_k() != 0 || moe.ffn() != 0 || moe.shared_ffn() != 0 || moe.first_dense() != 0 ||
        moe.balance_coefficient() != 0 || moe.z_loss() != 0 || moe.capacity_factor() != 0) {
      out_.Add("model.moe.experts",
               "0: the other keys of model.moe do nothing without it; set it, or delete model.moe");
    }
  }

  void Mtp() {
    if (m_.mtp().layers() != 0 && m_.mtp().layers() != 1) {
      out_.Add("model.mtp.layers", m_.mtp().layers(),
               ": one more token is predicted at most; use 0 or 1");
      return;
    }
    if (MtpLayers(m_) == 1 && (HasLayerNorm(m_) || HasLearnedPositions(m_))) {
      out_.Add("model.mtp.layers",
               "1: multi-token prediction has RMS norms and rotary positions; delete it, or set "
               "model.norm: rms and model.position: rope");
    }
    if (MtpLayers(m_) == 1) {
      out_.NotNegative("model.mtp.loss_coefficient", m_.mtp().loss_coefficient());
      if (spec_.data().sequence_length() == 1) {
        out_.Add("data.sequence_length",
                 "1: model.mtp predicts the token after the next; use 2 or more");
      }
    } else if (m_.mtp().loss_coefficient() != 0) {
      out_.Add("model.mtp.loss_coefficient", m_.mtp().loss_coefficient(),
               ": does nothing without model.mtp.layers: 1; set that, or delete it");
    }
  }

  // An architecture whose every model has a trait, without it, is a mistake.
  void Family() {
    const v1::Architecture a = m_.architecture();
    const std::string name = Text(v1::Architecture_Name(a), "ARCHITECTURE_");
    if ((a == v1::ARCHITECTURE_MIXTRAL || a == v1::ARCHITECTURE_QWEN3_MOE ||
         a == v1::ARCHITECTURE_GPT_OSS) &&
        !HasExperts(m_)) {
      out_.Add("model.architecture", name,
               ": is a mixture of experts; set model.moe.experts, or use another architecture");
    }
    if ((a == v1::ARCHITECTURE_DEEPSEEK_V2 || a == v1::ARCHITECTURE_DEEPSEEK_V3) && !IsMla(m_)) {
      out_.Add("model.architecture", name,
               ": has latent attention; set model.mla.kv_rank, or use another architecture");
    }
  }

  const v1::JobSpec& spec_;
  const v1::ModelSpec& m_;
  Problems& out_;
};

}  // namespace

void CheckModelSection(const v1::JobSpec& spec, Problems* problems) {
  ModelValidator(spec, problems).Run();
}

}  // namespace mt
