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
  if (!IsMla(context_.model)) weights.attention = AttentionOf(at);
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
