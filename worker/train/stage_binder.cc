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
          .weight_gradient = state_.Gradient(name + ".weight")};
}

LinearLayer StageBinder::Linear(const std::string& name, int64_t in, int64_t out,
                                bool column_parallel) const {
  return {.weight = state_.Weight(name + ".weight"),
          .weight_gradient = state_.Gradient(name + ".weight"),
          .in = in,
          .out = out,
          .column_parallel = column_parallel};
}

AttentionWeights StageBinder::AttentionOf(const std::string& block) const {
  const RankShape& s = context_.shape;
  return {.qkv = Linear(block + "self_attn.q_proj", s.hidden, s.qkv, true),
          .output = Linear(block + "self_attn.o_proj", s.query, s.hidden, false)};
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

BlockWeights StageBinder::WeightsOf(int64_t layer) const {
  const int64_t hidden = context_.shape.hidden;
  const std::string at = absl::StrCat("model.layers.", layer, ".");
  BlockWeights weights = {.layer = layer,
                          .first_norm = Norm(at + "input_layernorm", hidden),
                          .second_norm = Norm(at + "post_attention_layernorm", hidden)};
  if (IsMla(context_.model)) {
    weights.mla = MlaOf(at);
  } else {
    weights.attention = AttentionOf(at);
  }
  if (!IsMoe(context_.model, layer)) weights.feed_forward = FeedForwardOf(at);
  return weights;
}

BlockActivations StageBinder::ActivationsOf(int64_t slot, int64_t block) const {
  const auto tensor = [&](absl::string_view name) { return TensorOf(name, slot, block); };
  return {
      .input = tensor("block.input"),
      .middle = tensor("block.middle"),
      .first_norm = {.rstd = tensor("block.first_norm_rstd"), .output = tensor("block.first_norm")},
      .second_norm = {.rstd = tensor("block.second_norm_rstd"),
                      .output = tensor("block.second_norm")},
      .attention = {.qkv = tensor("block.qkv"),
                    .output = tensor("block.attention"),
                    .lse = tensor("block.attention_lse")},
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
      .feed_forward = {.gate_up = tensor("block.gate_up")}};
}

PartScratch StageBinder::Part() const {
  return {.delta = Tensor("stream.delta"),
          .norm_gradient = Tensor("block.norm_gradient"),
          .gathered_input = Tensor("gathered.input"),
          .gathered_gradient = Tensor("gathered.gradient")};
}

BlockScratch StageBinder::Scratch() const {
  return {.gradient = Tensor("stream.gradient"),
          .middle_gradient = Tensor("stream.middle_gradient"),
          .attention = {.part = Part(),
                        .rope_table = Tensor("rope.table"),
                        .output_gradient = Tensor("block.attention_gradient"),
                        .qkv_gradient = Tensor("block.qkv_gradient")},
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
                           .activated_again = Tensor("block.activated_again")}};
}

HeadWeights StageBinder::Head(bool tied) const {
  const char* head = tied ? kEmbeddingName : kHeadName;
  return {.norm = Norm("model.norm", context_.shape.hidden),
          .head = state_.Weight(head),
          .head_gradient = state_.Gradient(head)};
}

HeadTensors StageBinder::HeadScratch() const {
  return {.sum = Tensor("head.sum"),
          .norm = {.rstd = Tensor("head.rstd"), .output = Tensor("head.norm")},
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
