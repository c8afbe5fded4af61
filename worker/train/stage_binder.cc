#include "worker/train/stage_binder.h"

#include "common/spec/model_traits.h"

namespace mt {

void* StageBinder::Tensor(absl::string_view name, int64_t copy) const {
  const PlannedTensor* t = plan_.Find(name);
  if (t == nullptr) return nullptr;
  return static_cast<char*>(arena_) + t->offset + (t->copies == 1 ? 0 : copy) * t->CopyBytes();
}

void* StageBinder::TensorOf(absl::string_view name, int64_t slot, int64_t block) const {
  const PlannedTensor* t = plan_.Find(name);
  if (t == nullptr) return nullptr;
  const int64_t copy = t->copy_of_block[static_cast<size_t>(block)];
  return copy < 0 ? nullptr : Tensor(name, slot * t->blocks + copy);
}

NormWeights StageBinder::Norm(const std::string& name, int64_t columns) const {
  return {.columns = columns,
          .weight = state_.Weight(name + ".weight"),
          .weight_gradient = state_.Gradient(name + ".weight"),
          .bias = state_.Weight(name + ".bias"),
          .bias_gradient = state_.Gradient(name + ".bias")};
}

LinearLayer StageBinder::Linear(const std::string& name, int64_t in, int64_t out,
                                bool column_parallel) const {
  return {.weight = state_.Weight(name + ".weight"),
          .weight_gradient = state_.Gradient(name + ".weight"),
          .bias = state_.Weight(name + ".bias"),
          .bias_gradient = state_.Gradient(name + ".bias"),
          .in = in,
          .out = out,
          .column_parallel = column_parallel};
}

AttentionWeights StageBinder::AttentionOf(int64_t layer, const std::string& block) const {
  const RankShape& s = context_.shape;
  return {.qkv = Linear(block + "self_attn.q_proj", s.hidden, s.qkv, true),
          .output = Linear(block + "self_attn.o_proj", s.query, s.hidden, false),
          .query_norm = Norm(block + "self_attn.q_norm", s.head_dim),
          .key_norm = Norm(block + "self_attn.k_norm", s.head_dim),
          .sinks = state_.Weight(block + "self_attn.sinks"),
          .sinks_gradient = state_.Gradient(block + "self_attn.sinks"),
          .window = WindowOf(context_.model, layer)};
}

MlaWeights StageBinder::MlaOf(const std::string& block) const {
  const RankShape& s = context_.shape;
  const v1::MlaSpec& mla = context_.model.mla();
  const int64_t Q = mla.q_rank(), R = mla.kv_rank(), query = s.heads * KeyHeadDim(context_.model);
  const std::string at = block + "self_attn.";
  MlaWeights w = {
      .key_down = Linear(at + "kv_a_proj_with_mqa", s.hidden, R + mla.rope_dim(), false),
      .key_norm = Norm(at + "kv_a_layernorm", R),
      .key_value = Linear(at + "kv_b_proj", R, s.heads * (mla.nope_dim() + mla.v_dim()), true),
      .output = Linear(at + "o_proj", s.heads * mla.v_dim(), s.hidden, false)};
  if (Q == 0) {
    w.query = Linear(at + "q_proj", s.hidden, query, true);
    return w;
  }
  w.query_down = Linear(at + "q_a_proj", s.hidden, Q, false);
  w.query_norm = Norm(at + "q_a_layernorm", Q);
  w.query = Linear(at + "q_b_proj", Q, query, true);
  return w;
}

FeedForwardWeights StageBinder::FeedForwardOf(const std::string& block) const {
  const RankShape& s = context_.shape;
  const char* first = IsGated(context_.model) ? "mlp.gate_proj" : "mlp.up_proj";
  return {.gate_up = Linear(block + first, s.hidden, s.gate_up, true),
          .down = Linear(block + "mlp.down_proj", s.ffn, s.hidden, false)};
}

ExpertMatrices StageBinder::Experts(const std::string& first, int64_t in, int64_t out) const {
  return {.weight = state_.Weight(first + ".weight"),
          .weight_gradient = state_.Gradient(first + ".weight"),
          .in = in,
          .out = out,
          .stride = in * out,
          .bias = state_.Weight(first + ".bias"),
          .bias_gradient = state_.Gradient(first + ".bias")};
}

MoeWeights StageBinder::MoeOf(const std::string& block, int64_t layer) const {
  const RankShape& s = context_.shape;
  MoeWeights moe = {
      .router = {.weight = state_.Weight(block + "mlp.gate.weight"),
                 .weight_gradient = state_.Gradient(block + "mlp.gate.weight"),
                 .bias = state_.Weight(block + "mlp.gate.bias"),
                 .bias_gradient = state_.Gradient(block + "mlp.gate.bias"),
                 .selection_bias = balance_->SelectionBias(layer),
                 .training = balance_->Training(layer)},
      .gate_up = Experts(block + "mlp.experts.0.gate_proj", s.hidden, 2 * s.expert_ffn),
      .down = Experts(block + "mlp.experts.0.down_proj", s.expert_ffn, s.hidden)};
  if (s.shared_ffn > 0) {
    const std::string shared = block + "mlp.shared_experts.";
    moe.shared = {.gate_up = Linear(shared + "gate_proj", s.hidden, 2 * s.shared_ffn, true),
                  .down = Linear(shared + "down_proj", s.shared_ffn, s.hidden, false)};
  }
  return moe;
}

BlockWeights StageBinder::WeightsOf(int64_t layer) const {
  const int64_t hidden = context_.shape.hidden;
  const std::string at = absl::StrCat("model.layers.", layer, ".");
  BlockWeights weights = {.layer = layer,
                          .first_norm = Norm(at + "input_layernorm", hidden),
                          .second_norm = Norm(at + "post_attention_layernorm", hidden)};
  if (IsMla(context_.model)) {
    weights.mla = MlaOf(at);
  } else {
    weights.attention = AttentionOf(layer, at);
  }
  if (IsMoe(context_.model, layer)) {
    weights.moe = MoeOf(at, layer);
  } else {
    weights.feed_forward = FeedForwardOf(at);
  }
  return weights;
}

MoeActivations StageBinder::MoeActivationsOf(int64_t slot, int64_t block) const {
  const auto tensor = [&](absl::string_view name) { return TensorOf(name, slot, block); };
  const auto integers = [&](absl::string_view name) { return static_cast<int32_t*>(tensor(name)); };
  return {.router = {.logits = tensor("moe.logits"),
                     .ids = integers("moe.ids"),
                     .weights = tensor("moe.weights"),
                     .balance_gradient = static_cast<double*>(tensor("moe.balance_gradient"))},
          .position = integers("moe.position"),
          .source = integers("moe.source"),
          .offsets = integers("moe.offsets"),
          .gate_up = tensor("moe.gate_up"),
          .output = tensor("moe.output"),
          .shared = {.gate_up = tensor("moe.shared_gate_up")}};
}

BlockActivations StageBinder::ActivationsOf(int64_t slot, int64_t block) const {
  const auto tensor = [&](absl::string_view name) { return TensorOf(name, slot, block); };
  return {.input = tensor("block.input"),
          .middle = tensor("block.middle"),
          .first_norm = {.rstd = tensor("block.first_norm_rstd"),
                         .mean = tensor("block.first_norm_mean"),
                         .output = tensor("block.first_norm")},
          .second_norm = {.rstd = tensor("block.second_norm_rstd"),
                          .mean = tensor("block.second_norm_mean"),
                          .output = tensor("block.second_norm")},
          .attention = {.qkv = tensor("block.qkv"),
                        .output = tensor("block.attention"),
                        .lse = tensor("block.attention_lse"),
                        .rotated = tensor("block.rotated"),
                        .query_rstd = tensor("block.query_rstd"),
                        .key_rstd = tensor("block.key_rstd")},
          .mla = {.query_latent = tensor("mla.query_latent"),
                  .query_norm = {.rstd = tensor("mla.query_rstd"),
                                 .output = tensor("mla.query_normed")},
                  .key_latent = tensor("mla.key_latent"),
                  .key_norm = {.rstd = tensor("mla.key_rstd"), .output = tensor("mla.key_normed")},
                  .query = tensor("mla.query"),
                  .key = tensor("mla.key"),
                  .value = tensor("mla.value"),
                  .output = tensor("mla.output"),
                  .lse = tensor("mla.lse")},
          .feed_forward = {.gate_up = tensor("block.gate_up")},
          .moe = MoeActivationsOf(slot, block)};
}

PartScratch StageBinder::Part() const {
  return {.delta = Tensor("stream.delta"),
          .norm_gradient = Tensor("block.norm_gradient"),
          .gathered_input = Tensor("gathered.input"),
          .gathered_gradient = Tensor("gathered.gradient")};
}

MoeScratch StageBinder::MoeScratchOf() const {
  return {.part = Part(),
          .router = {.input = Tensor("moe.router_input"),
                     .input_again = Tensor("moe.router_input_again"),
                     .weight = Tensor("moe.router_weight"),
                     .input_gradient = Tensor("moe.router_input_gradient"),
                     .counts64 = static_cast<double*>(Tensor("moe.counts64")),
                     .counts = Tensor("moe.counts"),
                     .weights_gradient = Tensor("moe.weights_gradient"),
                     .logits_gradient = Tensor("moe.logits_gradient")},
          .sorted = Tensor("moe.sorted"),
          .sorted_again = Tensor("moe.sorted_again"),
          .activated = Tensor("moe.activated"),
          .activated_gradient = Tensor("moe.activated_gradient"),
          .activated_again = Tensor("moe.activated_again"),
          .shared = {.activated = Tensor("moe.shared_activated"),
                     .activated_gradient = Tensor("moe.shared_activated_gradient"),
                     .activated_again = Tensor("moe.shared_activated_again")}};
}

BlockScratch StageBinder::Scratch() const {
  return {.gradient = Tensor("stream.gradient"),
          .middle_gradient = Tensor("stream.middle_gradient"),
          .attention = {.part = Part(),
                        .rope_table = Tensor("rope.table"),
                        .output_gradient = Tensor("block.attention_gradient"),
                        .qkv_gradient = Tensor("block.qkv_gradient"),
                        .rotated_gradient = Tensor("block.rotated_gradient")},
          .mla = {.part = Part(),
                  .rope_table = Tensor("rope.table"),
                  .key_value = Tensor("mla.key_value"),
                  .key_rope = Tensor("mla.key_rope"),
                  .key_rope_rows = Tensor("mla.key_rope_rows"),
                  .gathered_query = Tensor("mla.gathered_query"),
                  .gathered_key = Tensor("mla.gathered_key"),
                  .output_gradient = Tensor("mla.output_gradient"),
                  .query_gradient = Tensor("mla.query_gradient"),
                  .key_gradient = Tensor("mla.key_gradient"),
                  .value_gradient = Tensor("mla.value_gradient"),
                  .key_value_gradient = Tensor("mla.key_value_gradient"),
                  .key_rope_gradient = Tensor("mla.key_rope_gradient"),
                  .query_normed_gradient = Tensor("mla.query_normed_gradient"),
                  .key_normed_gradient = Tensor("mla.key_normed_gradient")},
          .feed_forward = {.part = Part(),
                           .activated = Tensor("block.activated"),
                           .activated_gradient = Tensor("block.activated_gradient"),
                           .activated_again = Tensor("block.activated_again")},
          .moe = MoeScratchOf()};
}

HeadWeights StageBinder::Head(bool tied) const {
  const char* head = tied ? kEmbeddingName : kHeadName;
  return {.norm = Norm("model.norm", context_.shape.hidden),
          .head = state_.Weight(head),
          .head_gradient = state_.Gradient(head)};
}

PositionWeights StageBinder::Positions() const {
  return {.positions = context_.model.max_positions(),
          .table = state_.Weight(kPositionName),
          .table_gradient = state_.Gradient(kPositionName)};
}

HeadTensors StageBinder::HeadScratch() const {
  return {.sum = Tensor("head.sum"),
          .norm = {.rstd = Tensor("head.rstd"),
                   .mean = Tensor("head.mean"),
                   .output = Tensor("head.norm")},
          .norm_gradient = Tensor("head.norm_gradient"),
          .logits = Tensor("head.logits"),
          .maximum = Tensor("head.maximum"),
          .sum_exp = Tensor("head.sum_exp"),
          .target_logit = Tensor("head.target_logit"),
          .lse = Tensor("head.lse"),
          .row_loss = Tensor("head.row_loss"),
          .gathered_input = Tensor("gathered.input")};
}

}  // namespace mt
