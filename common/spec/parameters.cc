#include "common/spec/parameters.h"

#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/spec/model_traits.h"

namespace mt {
namespace {

// FNV-1a: stable for ever, since initial weights depend on it.
uint64_t HashOfName(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char c : name) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

// Collects a model's parameters in the order of the forward pass.
class Collector {
 public:
  explicit Collector(const v1::ModelSpec& model)
      : m_(model),
        std_(model.init_std()),
        residual_std_(model.init_std() / std::sqrt(2.0 * static_cast<double>(model.layers()))) {}

  std::vector<LogicalParameter> Collect() {
    Matrix(kEmbeddingName, m_.vocab(), m_.hidden(), 0, std_);
    if (HasLearnedPositions(m_)) Matrix(kPositionName, m_.max_positions(), m_.hidden(), -1, std_);
    for (layer_ = 0; layer_ < m_.layers(); ++layer_) Block();
    for (; layer_ < m_.layers() + MtpLayers(m_); ++layer_) Mtp();
    layer_ = -1;
    Norm(kFinalNormName, m_.hidden());
    if (HasLayerNorm(m_)) Bias(kFinalNormBiasName, m_.hidden(), -1);
    if (!m_.tie_embeddings()) Matrix(kHeadName, m_.vocab(), m_.hidden(), 0, std_);
    return std::move(all_);
  }

 private:
  LogicalParameter& Add(std::string name, std::vector<int64_t> shape, int split) {
    LogicalParameter& p = all_.emplace_back();
    p.name = std::move(name);
    p.shape = std::move(shape);
    p.split_dimension = split;
    p.layer = layer_;
    p.init_stream = HashOfName(p.name);
    return p;
  }
  LogicalParameter& Matrix(std::string name, int64_t rows, int64_t columns, int split, double std,
                           std::string group = "") {
    LogicalParameter& p = Add(std::move(name), {rows, columns}, split);
    p.init_std = std;
    p.group = std::move(group);
    return p;
  }
  LogicalParameter& Norm(std::string name, int64_t size) {
    LogicalParameter& p = Add(std::move(name), {size}, -1);
    p.weight_decay = false;
    return p;
  }
  LogicalParameter& Bias(std::string name, int64_t size, int split, std::string group = "") {
    LogicalParameter& p = Add(std::move(name), {size}, split);
    p.init_value = 0;
    p.weight_decay = false;
    p.group = std::move(group);
    return p;
  }
  std::string At(absl::string_view rest) const {
    return absl::StrCat("model.layers.", layer_, ".", rest);
  }

  void BlockNorm(absl::string_view name) {
    Norm(At(absl::StrCat(name, ".weight")), m_.hidden());
    if (HasLayerNorm(m_)) Bias(At(absl::StrCat(name, ".bias")), m_.hidden(), -1);
  }

  void Block() {
    BlockNorm("input_layernorm");
    IsMla(m_) ? Mla() : Attention();
    BlockNorm("post_attention_layernorm");
    IsMoe(m_, layer_) ? Moe() : Dense();
  }

  void Attention() {
    const int64_t C = m_.hidden(), query = m_.heads() * m_.head_dim(),
                  key = m_.kv_heads() * m_.head_dim();
    const std::pair<const char*, int64_t> projections[] = {
        {"self_attn.q_proj", query}, {"self_attn.k_proj", key}, {"self_attn.v_proj", key}};
    for (const auto& [name, rows] : projections)
      Matrix(At(absl::StrCat(name, ".weight")), rows, C, 0, std_, At("qkv"));
    if (m_.qkv_bias()) {
      for (const auto& [name, rows] : projections)
        Bias(At(absl::StrCat(name, ".bias")), rows, 0, At("qkv.bias"));
    }
    if (m_.qk_norm()) {
      for (const char* name : {"self_attn.q_norm.weight", "self_attn.k_norm.weight"})
        Norm(At(name), m_.head_dim()).gradient_by_heads = true;
    }
    if (m_.sinks()) Bias(At("self_attn.sinks"), m_.heads(), 0);
    Matrix(At("self_attn.o_proj.weight"), C, query, 1, residual_std_);
    if (m_.output_bias()) Bias(At("self_attn.o_proj.bias"), C, -1);
  }

  void Mla() {
    const v1::MlaSpec& a = m_.mla();
    const int64_t C = m_.hidden(), H = m_.heads(), query = H * (a.nope_dim() + a.rope_dim());
    if (a.q_rank() > 0) {
      Matrix(At("self_attn.q_a_proj.weight"), a.q_rank(), C, -1, std_);
      Norm(At("self_attn.q_a_layernorm.weight"), a.q_rank());
      Matrix(At("self_attn.q_b_proj.weight"), query, a.q_rank(), 0, std_);
    } else {
      Matrix(At("self_attn.q_proj.weight"), query, C, 0, std_);
    }
    Matrix(At("self_attn.kv_a_proj_with_mqa.weight"), a.kv_rank() + a.rope_dim(), C, -1, std_);
    Norm(At("self_attn.kv_a_layernorm.weight"), a.kv_rank());
    Matrix(At("self_attn.kv_b_proj.weight"), H * (a.nope_dim() + a.v_dim()), a.kv_rank(), 0, std_);
    Matrix(At("self_attn.o_proj.weight"), C, H * a.v_dim(), 1, residual_std_);
  }

  // gate (if there is one), up and down of a feed-forward of `width` columns.
  void FeedForward(const std::string& at, int64_t width, bool bias) {
    const int64_t C = m_.hidden();
    if (IsGated(m_)) Matrix(at + "gate_proj.weight", width, C, 0, std_, at + "gate_up");
    Matrix(at + "up_proj.weight", width, C, 0, std_, at + "gate_up");
    if (bias && IsGated(m_)) Bias(at + "gate_proj.bias", width, 0, at + "gate_up.bias");
    if (bias) Bias(at + "up_proj.bias", width, 0, at + "gate_up.bias");
    Matrix(at + "down_proj.weight", C, width, 1, residual_std_);
    if (bias) Bias(at + "down_proj.bias", C, -1);
  }
  void Dense() { FeedForward(At("mlp."), m_.ffn(), m_.mlp_bias()); }

  // Of all experts gate and up, then down, so that each kind is one range of equal steps.
  void Moe() {
    const v1::MoeSpec& moe = m_.moe();
    const int64_t C = m_.hidden(), E = moe.experts(), width = moe.ffn();
    Matrix(At("mlp.gate.weight"), E, C, -1, std_);
    if (moe.router_bias()) Bias(At("mlp.gate.bias"), E, -1);
    if (moe.selection_bias()) Bias(At("mlp.gate.e_score_correction_bias"), E, -1).trained = false;
    auto expert = [&](int64_t e, absl::string_view name) {
      return At(absl::StrCat("mlp.experts.", e, ".", name));
    };
    const std::string up_group = At("experts.gate_up"), down_group = At("experts.down");
    for (int64_t e = 0; e < E; ++e) {
      Matrix(expert(e, "gate_proj.weight"), width, C, 0, std_, up_group);
      Matrix(expert(e, "up_proj.weight"), width, C, 0, std_, up_group);
    }
    for (int64_t e = 0; e < E; ++e)
      Matrix(expert(e, "down_proj.weight"), C, width, 1, residual_std_, down_group);
    if (m_.mlp_bias()) {
      for (int64_t e = 0; e < E; ++e) {
        Bias(expert(e, "gate_proj.bias"), width, 0, up_group + ".bias");
        Bias(expert(e, "up_proj.bias"), width, 0, up_group + ".bias");
      }
      for (int64_t e = 0; e < E; ++e)
        Bias(expert(e, "down_proj.bias"), C, -1, down_group + ".bias");
    }
    if (moe.shared_ffn() > 0) FeedForward(At("mlp.shared_experts."), moe.shared_ffn(), false);
  }

  void Mtp() {
    const int64_t C = m_.hidden();
    Norm(At("enorm.weight"), C);
    Norm(At("hnorm.weight"), C);
    Matrix(At("eh_proj.weight"), C, 2 * C, -1, std_);
    Block();
    Norm(At("shared_head.norm.weight"), C);
  }

  const v1::ModelSpec& m_;
  const double std_, residual_std_;
  int64_t layer_ = -1;
  std::vector<LogicalParameter> all_;
};

}  // namespace

std::vector<LogicalParameter> ParametersOf(const v1::ModelSpec& model) {
  return Collector(model).Collect();
}

int64_t ParameterCount(const v1::ModelSpec& model) {
  int64_t count = 0;
  for (const LogicalParameter& p : ParametersOf(model)) count += p.Elements();
  return count;
}

int64_t ActiveParameterCount(const v1::ModelSpec& model) {
  int64_t count = 0, in_experts = 0;
  for (const LogicalParameter& p : ParametersOf(model)) {
    if (p.layer >= model.layers()) continue;
    (absl::StrContains(p.name, ".mlp.experts.") ? in_experts : count) += p.Elements();
  }
  if (!HasExperts(model)) return count;
  return count + in_experts / model.moe().experts() * model.moe().top_k();
}

}  // namespace mt
