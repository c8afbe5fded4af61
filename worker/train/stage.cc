#include "worker/train/stage.h"

#include <cmath>

#include "worker/model/embedding.h"

namespace mt {

Stage::Stage(const ModelContext& context, ActivationPlan plan, const Options& options,
             FlatState* state, Operations* operations)
    : context_(context),
      plan_(std::move(plan)),
      options_(options),
      state_(state),
      operations_(operations) {}

Stage::~Stage() {
  if (arena_ != nullptr) operations_->Free(arena_);
}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(const ModelContext& context,
                                                     ActivationPlan plan, const Options& options,
                                                     FlatState* state, Operations* operations) {
  std::unique_ptr<Stage> stage(new Stage(context, std::move(plan), options, state, operations));
  MT_ASSIGN_OR_RETURN(stage->arena_,
                      operations->Allocate(static_cast<size_t>(stage->plan_.arena_bytes)));
  stage->BindWeights();
  stage->BindActivations();
  stage->BindScratch();
  MT_RETURN_IF_ERROR(stage->BindFp8());
  MT_RETURN_IF_ERROR(stage->FillRopeTable());
  return stage;
}

void* Stage::Tensor(absl::string_view name, int64_t copy) const {
  const PlannedTensor* t = plan_.Find(name);
  if (t == nullptr) return nullptr;
  return static_cast<char*>(arena_) + t->offset + (t->copies == 1 ? 0 : copy) * t->CopyBytes();
}

void Stage::BindWeights() {
  const RankShape& s = context_.shape;
  auto norm = [&](const std::string& name) {
    return NormWeight{state_->Weight(name), state_->Gradient(name)};
  };
  auto linear = [&](const std::string& name, int64_t in, int64_t out, bool column_parallel) {
    return LinearLayer{.weight = state_->Weight(name),
                       .weight_gradient = state_->Gradient(name),
                       .in = in,
                       .out = out,
                       .column_parallel = column_parallel};
  };
  for (int64_t layer = s.first_layer; layer < s.first_layer + s.blocks; ++layer) {
    const std::string at = absl::StrCat("model.layers.", layer, ".");
    weights_.push_back({.first_norm = norm(at + "input_layernorm.weight"),
                        .qkv = linear(at + "self_attn.q_proj.weight", s.hidden, s.qkv, true),
                        .output = linear(at + "self_attn.o_proj.weight", s.query, s.hidden, false),
                        .second_norm = norm(at + "post_attention_layernorm.weight"),
                        .gate_up = linear(at + "mlp.gate_proj.weight", s.hidden, 2 * s.ffn, true),
                        .down = linear(at + "mlp.down_proj.weight", s.ffn, s.hidden, false)});
  }
  const char* head = options_.tied ? kEmbeddingName : kHeadName;
  head_weights_ = {.norm = state_->Weight(kFinalNormName), .head = state_->Weight(head)};
  head_gradients_ = {.norm = state_->Gradient(kFinalNormName), .head = state_->Gradient(head)};
  table_ = state_->Weight(kEmbeddingName);
  table_gradient_ = state_->Gradient(kEmbeddingName);
}

void Stage::BindActivations() {
  const RankShape& s = context_.shape;
  for (int64_t copy = 0; copy < s.in_flight * s.blocks; ++copy) {
    activations_.push_back({.input = Tensor("block.input", copy),
                            .first_norm_rstd = Tensor("block.first_norm_rstd", copy),
                            .first_norm = Tensor("block.first_norm", copy),
                            .qkv = Tensor("block.qkv", copy),
                            .attention = Tensor("block.attention", copy),
                            .attention_lse = Tensor("block.attention_lse", copy),
                            .middle = Tensor("block.middle", copy),
                            .second_norm_rstd = Tensor("block.second_norm_rstd", copy),
                            .second_norm = Tensor("block.second_norm", copy),
                            .gate_up = Tensor("block.gate_up", copy)});
  }
}

void Stage::BindScratch() {
  scratch_ = {.rope_table = Tensor("rope.table"),
              .delta = Tensor("stream.delta"),
              .activated = Tensor("block.activated"),
              .gradient = Tensor("stream.gradient"),
              .middle_gradient = Tensor("stream.middle_gradient"),
              .activated_gradient = Tensor("block.activated_gradient"),
              .activated_again = Tensor("block.activated_again"),
              .norm_gradient = Tensor("block.norm_gradient"),
              .attention_gradient = Tensor("block.attention_gradient"),
              .qkv_gradient = Tensor("block.qkv_gradient"),
              .gathered_input = Tensor("gathered.input"),
              .gathered_gradient = Tensor("gathered.gradient")};
  head_ = {.sum = Tensor("head.sum"),
           .rstd = Tensor("head.rstd"),
           .norm = Tensor("head.norm"),
           .norm_gradient = Tensor("head.norm_gradient"),
           .logits = Tensor("head.logits"),
           .maximum = Tensor("head.maximum"),
           .sum_exp = Tensor("head.sum_exp"),
           .target_logit = Tensor("head.target_logit"),
           .lse = Tensor("head.lse"),
           .row_loss = Tensor("head.row_loss"),
           .gathered_input = Tensor("gathered.input")};
  input_ids_ = static_cast<int32_t*>(Tensor("tokens.input"));
  targets_ = static_cast<int32_t*>(Tensor("tokens.target"));
  const PlannedTensor* tokens = plan_.Find(options_.first ? "tokens.input" : "tokens.target");
  token_stride_ =
      tokens == nullptr ? 0 : tokens->CopyBytes() / static_cast<int64_t>(sizeof(int32_t));
}

absl::Status Stage::BindFp8() {
  if (plan_.Find("fp8.rows") == nullptr) return absl::OkStatus();
  const RankShape& s = context_.shape;
  context_.fp8_scratch = {.rows = Tensor("fp8.rows"), .columns = Tensor("fp8.columns")};
  for (int64_t slot = 0; slot < s.in_flight; ++slot) {
    for (int64_t block = 0; block < s.blocks; ++block) {
      BlockActivations& a = activations_[static_cast<size_t>(slot * s.blocks + block)];
      int64_t next = block * kFp8ScalesPerBlock;
      auto take = [&] {
        const TensorScale scale = {static_cast<float*>(Tensor("fp8.amax", slot)) + next,
                                   static_cast<float*>(Tensor("fp8.scale", slot)) + next};
        ++next;
        return scale;
      };
      for (LinearScales* scales :
           {&a.qkv_scales, &a.output_scales, &a.gate_up_scales, &a.down_scales})
        *scales = {.input = take(), .output_gradient = take()};
      if (block > 0)
        a.input_gradient_amax = BlockOf(slot, block - 1).down_scales.output_gradient.amax;
    }
  }
  std::vector<LinearLayer*> layers;
  for (BlockWeights& w : weights_) {
    w.qkv.output_gradient8_transposed = Tensor("fp8.qkv_gradient");
    w.output.output_gradient8_transposed = Tensor("fp8.output_gradient");
    w.gate_up.output_gradient8_transposed = Tensor("fp8.gate_up_gradient");
    w.down.output_gradient8_transposed = Tensor("fp8.down_gradient");
    layers.insert(layers.end(), {&w.qkv, &w.output, &w.gate_up, &w.down});
  }
  MT_ASSIGN_OR_RETURN(fp8_weights_, Fp8Weights::Create(std::move(layers), operations_));
  return absl::OkStatus();
}

absl::Status Stage::WeightsChanged() {
  return fp8_weights_ == nullptr ? absl::OkStatus() : fp8_weights_->Refresh(context_);
}

// [p, j] = cos(p theta^(-2j/d)), [p, d/2 + j] = sin, in float64, rounded once.
absl::Status Stage::FillRopeTable() {
  const RankShape& s = context_.shape;
  const int64_t half = s.head_dim / 2, count = s.sequence * s.head_dim;
  std::vector<double> table(static_cast<size_t>(count));
  for (int64_t p = 0; p < s.sequence; ++p) {
    for (int64_t j = 0; j < half; ++j) {
      const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(s.head_dim);
      const double angle = static_cast<double>(p) * std::pow(options_.rope_theta, exponent);
      table[static_cast<size_t>(p * s.head_dim + j)] = std::cos(angle);
      table[static_cast<size_t>(p * s.head_dim + half + j)] = std::sin(angle);
    }
  }
  const std::vector<float> single(table.begin(), table.end());
  const void* source =
      context_.types.statistic == MT_F64 ? static_cast<const void*>(table.data()) : single.data();
  const Backend& backend = operations_->backend();
  MT_RETURN_IF_ERROR(backend.ToStatus(
      backend.abi().copy_to_device(const_cast<void*>(scratch_.rope_table), source,
                                   static_cast<size_t>(count * s.statistic_bytes), nullptr),
      "copying the rotation table"));
  // The copy may still be reading the vectors.
  return backend.ToStatus(backend.abi().stream_synchronize(nullptr),
                          "waiting for the rotation table");
}

absl::Status Stage::RunBlocks(int64_t slot) {
  const RankShape& s = context_.shape;
  if (options_.first) {
    MT_RETURN_IF_ERROR(
        EmbeddingForward(context_, input_ids(slot), table_, scratch_.delta, input(slot)));
  }
  BlockInput in;  // the first block's sum is in place
  for (int64_t block = 0; block < s.blocks; ++block) {
    const BlockActivations& a = BlockOf(slot, block);
    MT_ASSIGN_OR_RETURN(
        output_, BlockForward(context_, weights_[static_cast<size_t>(block)], in, a, scratch_));
    in = {.delta = output_, .residual = a.middle};
  }
  return absl::OkStatus();
}

absl::Status Stage::Forward(int64_t slot) {
  const RankShape& s = context_.shape;
  if (context_.fp8()) {
    MT_RETURN_IF_ERROR(context_.Run<MT_OP_FILL>({.dtype = MT_F32,
                                                 .data = Tensor("fp8.amax", slot),
                                                 .count = s.blocks * kFp8ScalesPerBlock,
                                                 .value = 0}));
  }
  MT_RETURN_IF_ERROR(RunBlocks(slot));
  const void* residual = BlockOf(slot, s.blocks - 1).middle;
  if (options_.last) {
    return HeadForward(context_, head_weights_, head_gradients_, output_, residual, targets(slot),
                       options_.loss, head_);
  }
  return context_.Run<MT_OP_ADD>({.dtype = context_.dtype,
                                  .a = output_,
                                  .b = residual,
                                  .destination = output_,
                                  .count = s.stream_rows * s.hidden});
}

absl::Status Stage::Backward(int64_t slot, const Completed& completed) {
  const RankShape& s = context_.shape;
  const auto complete = [&](int64_t block) {
    return completed == nullptr ? absl::OkStatus() : completed(s.first_layer + block);
  };
  float* const amax = BlockOf(slot, s.blocks - 1).down_scales.output_gradient.amax;
  if (options_.last) {
    MT_RETURN_IF_ERROR(
        HeadBackward(context_, head_weights_, head_gradients_, head_, scratch_.gradient, amax));
    MT_RETURN_IF_ERROR(complete(s.blocks));
  } else {
    MT_RETURN_IF_ERROR(context_.Measure(scratch_.gradient, s.stream_rows * s.hidden, amax));
  }
  for (int64_t block = s.blocks - 1; block >= 0; --block) {
    const BlockActivations& a = BlockOf(slot, block);
    const BlockWeights& weights = weights_[static_cast<size_t>(block)];
    if (options_.recompute) MT_RETURN_IF_ERROR(BlockRecompute(context_, weights, a, scratch_));
    MT_RETURN_IF_ERROR(BlockBackward(context_, weights, a, scratch_));
    MT_RETURN_IF_ERROR(complete(block));
  }
  if (!options_.first) return absl::OkStatus();
  return EmbeddingBackward(context_, input_ids(slot), scratch_.gradient, scratch_.gathered_gradient,
                           table_gradient_);
}

absl::Status Stage::Logits(int64_t row) {
  MT_RETURN_IF_ERROR(RunBlocks(0));
  return HeadLogits(context_, head_weights_, output_, BlockOf(0, context_.shape.blocks - 1).middle,
                    row, head_);
}

}  // namespace mt
