#include "worker/train/stage.h"

#include "common/spec/model_traits.h"
#include "common/spec/rope.h"
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
  MT_RETURN_IF_ERROR(stage->Bind());
  MT_RETURN_IF_ERROR(stage->EndTargets());
  return stage;
}

absl::Status Stage::Bind() {
  const RankShape& s = context_.shape;
  const StageBinder binder(context_, plan_, arena_, *state_, options_.balance);
  for (int64_t block = 0; block < s.blocks; ++block)
    weights_.push_back(binder.WeightsOf(s.first_layer + block));
  for (int64_t slot = 0; slot < s.in_flight; ++slot) {
    for (int64_t block = 0; block < s.blocks; ++block)
      activations_.push_back(binder.ActivationsOf(slot, block));
  }
  scratch_ = binder.Scratch();
  head_weights_ = binder.Head(options_.tied);
  head_ = binder.HeadScratch();
  table_ = state_->Weight(kEmbeddingName);
  table_gradient_ = state_->Gradient(kEmbeddingName);
  input_ids_ = RowsOf(binder, "tokens.input");
  targets_ = RowsOf(binder, "tokens.target");
  next_tokens_ = RowsOf(binder, "tokens.next");
  mtp_targets_ = RowsOf(binder, "tokens.mtp_target");
  document_start_ = RowsOf(binder, "documents.start");
  position_ids_ = RowsOf(binder, "positions.ids");
  if (s.mtp_blocks > 0) {
    mtp_ = {.weights = binder.MtpWeightsOf(options_.tied),
            .activations = binder.MtpActivationsOf(),
            .scratch = binder.MtpScratchOf()};
  }
  positions_ = binder.Positions();
  MT_RETURN_IF_ERROR(FillTables(binder));
  return BindFp8(binder);
}

Stage::SlotRows Stage::RowsOf(const StageBinder& binder, absl::string_view name) const {
  const PlannedTensor* planned = plan_.Find(name);
  if (planned == nullptr) return {};
  const int64_t each = planned->CopyBytes() / static_cast<int64_t>(sizeof(int32_t));
  return {.first = static_cast<int32_t*>(binder.Tensor(name)),
          .stride = planned->copies == 1 ? 0 : each};
}

TokenRows Stage::tokens(int64_t slot) const {
  return {.input_ids = input_ids_.Of(slot),
          .targets = targets_.Of(slot),
          .next_tokens = options_.masked ? next_tokens_.Of(slot) : nullptr,
          .mtp_targets = options_.masked ? mtp_targets_.Of(slot) : nullptr,
          .document_start = document_start_.Of(slot),
          .positions = options_.reset_positions ? position_ids_.Of(slot) : nullptr};
}

void Stage::Enter(int64_t slot) {
  context_.document_start = document_start_.Of(slot);
  context_.positions = options_.reset_positions ? position_ids_.Of(slot) : nullptr;
}

void Stage::SetLoss(const LossOptions& loss, const LossOptions& mtp_loss) {
  options_.loss = loss;
  options_.mtp_loss = mtp_loss;
  if (options_.balance == nullptr) return;
  const auto rescale = [&](BlockWeights& block) {
    if (IsMoe(context_.model, block.layer))
      block.moe.router.training = options_.balance->Training(block.layer);
  };
  for (BlockWeights& block : weights_) rescale(block);
  if (mtp_.has_value()) rescale(mtp_->weights.block);
}

absl::Status Stage::BindFp8(const StageBinder& binder) {
  if (plan_.Find("fp8.rows") == nullptr) return absl::OkStatus();
  const RankShape& s = context_.shape;
  context_.fp8_scratch = {.rows = binder.Tensor("fp8.rows"),
                          .columns = binder.Tensor("fp8.columns")};
  for (int64_t slot = 0; slot < s.in_flight; ++slot) {
    float* const amax = static_cast<float*>(binder.Tensor("fp8.amax", slot));
    float* const scale = static_cast<float*>(binder.Tensor("fp8.scale", slot));
    for (int64_t block = 0; block < s.blocks; ++block) {
      BlockActivations& a = activations_[static_cast<size_t>(slot * s.blocks + block)];
      int64_t next = block * kFp8ScalesPerBlock;
      auto take = [&] {
        const TensorScale taken = {amax + next, scale + next};
        ++next;
        return taken;
      };
      for (LinearScales* scales : {&a.attention.qkv_scales, &a.attention.output_scales,
                                   &a.feed_forward.gate_up_scales, &a.feed_forward.down_scales})
        *scales = {.input = take(), .output_gradient = take()};
      a.attention_amax = {.input = a.attention.qkv_scales.input.amax,
                          .output_gradient = a.attention.output_scales.output_gradient.amax};
      a.feed_forward_amax = {.input = a.feed_forward.gate_up_scales.input.amax,
                             .output_gradient = a.feed_forward.down_scales.output_gradient.amax};
      if (block > 0)
        a.input_gradient_amax = BlockOf(slot, block - 1).feed_forward_amax.output_gradient;
    }
  }
  std::vector<LinearLayer*> layers;
  for (BlockWeights& w : weights_) {
    w.attention.qkv.output_gradient8_transposed = binder.Tensor("fp8.qkv_gradient");
    w.attention.output.output_gradient8_transposed = binder.Tensor("fp8.output_gradient");
    w.feed_forward.gate_up.output_gradient8_transposed = binder.Tensor("fp8.gate_up_gradient");
    w.feed_forward.down.output_gradient8_transposed = binder.Tensor("fp8.down_gradient");
    layers.insert(layers.end(), {&w.attention.qkv, &w.attention.output, &w.feed_forward.gate_up,
                                 &w.feed_forward.down});
  }
  MT_ASSIGN_OR_RETURN(fp8_weights_, Fp8Weights::Create(std::move(layers), operations_));
  return absl::OkStatus();
}

absl::Status Stage::WeightsChanged() {
  return fp8_weights_ == nullptr ? absl::OkStatus() : fp8_weights_->Refresh(context_);
}

absl::Status Stage::FillTables(const StageBinder& binder) {
  const RankShape& s = context_.shape;
  if (s.rotary_dim > 0) {
    const std::vector<double> table = RopeTable(context_.model, s.sequence);
    // Rounded once.
    const std::vector<float> single(table.begin(), table.end());
    const void* source =
        context_.types.statistic == MT_F64 ? static_cast<const void*>(table.data()) : single.data();
    MT_RETURN_IF_ERROR(CopyToDevice(binder.Tensor("rope.table"), source,
                                    static_cast<int64_t>(table.size()) * s.statistic_bytes));
  }
  if (position_ids_.first == nullptr || options_.reset_positions) return absl::OkStatus();
  std::vector<int32_t> ids(static_cast<size_t>(s.rows));
  for (int64_t row = 0; row < s.rows; ++row)
    ids[static_cast<size_t>(row)] = static_cast<int32_t>(row / s.batch);
  return CopyToDevice(position_ids_.first, ids.data(), s.rows * 4);
}

absl::Status Stage::CopyToDevice(void* destination, const void* source, int64_t bytes) {
  const Backend& backend = operations_->backend();
  MT_RETURN_IF_ERROR(backend.ToStatus(
      backend.abi().copy_to_device(destination, source, static_cast<size_t>(bytes), nullptr),
      "copying a table of positions"));
  // The copy may still be reading the source.
  return backend.ToStatus(backend.abi().stream_synchronize(nullptr),
                          "waiting for a table of positions");
}

absl::Status Stage::EndTargets() {
  if (!mtp_.has_value()) return absl::OkStatus();
  const RankShape& s = context_.shape;
  const std::vector<int32_t> none(static_cast<size_t>(s.batch), -1);
  const Backend& backend = operations_->backend();
  for (int64_t slot = 0; slot < s.in_flight; ++slot) {
    MT_RETURN_IF_ERROR(
        backend.ToStatus(backend.abi().copy_to_device(targets_.Of(slot) + s.rows, none.data(),
                                                      none.size() * sizeof(int32_t), nullptr),
                         "copying the end of the targets"));
  }
  return backend.ToStatus(backend.abi().stream_synchronize(nullptr),
                          "waiting for the end of the targets");
}

absl::Status Stage::RunBlocks(int64_t slot) {
  const RankShape& s = context_.shape;
  Enter(slot);
  if (options_.first) {
    void* const partial = scratch_.attention.part.delta;
    MT_RETURN_IF_ERROR(
        EmbeddingForward(context_, input_ids_.Of(slot), table_, partial, input(slot)));
    if (positions_.table != nullptr) {
      MT_RETURN_IF_ERROR(PositionsForward(context_, positions_,
                                          position_ids_.Of(slot) + context_.first_position, partial,
                                          input(slot)));
    }
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

absl::Status Stage::ForwardMain(int64_t slot, const LossOptions& loss) {
  const RankShape& s = context_.shape;
  if (context_.fp8()) {
    MT_RETURN_IF_ERROR(context_.Run<MT_OP_FILL>({.dtype = MT_F32,
                                                 .data = BlockOf(slot, 0).attention_amax.input,
                                                 .count = s.blocks * kFp8ScalesPerBlock,
                                                 .value = 0}));
  }
  MT_RETURN_IF_ERROR(RunBlocks(slot));
  const void* residual = BlockOf(slot, s.blocks - 1).middle;
  if (options_.last) {
    return HeadForward(context_, head_weights_, output_, residual, targets_.Of(slot), loss, head_);
  }
  return context_.Run<MT_OP_ADD>({.dtype = context_.dtype,
                                  .a = output_,
                                  .b = residual,
                                  .destination = output_,
                                  .count = s.stream_rows * s.hidden});
}

absl::Status Stage::Forward(int64_t slot) {
  MT_RETURN_IF_ERROR(ForwardMain(slot, options_.loss));
  if (!mtp_.has_value()) return absl::OkStatus();
  return MtpForward(context_, mtp_->weights, head_.norm.output, NextTokens(slot), MtpTargets(slot),
                    options_.mtp_loss, mtp_->activations, mtp_->scratch);
}

absl::Status Stage::ForwardOnly(int64_t slot) { return ForwardMain(slot, {.gradient = false}); }

absl::Status Stage::Backward(int64_t slot, const Completed& completed) {
  const RankShape& s = context_.shape;
  Enter(slot);
  const auto complete = [&](int64_t block) {
    return completed == nullptr ? absl::OkStatus() : completed(s.first_layer + block);
  };
  float* const amax = BlockOf(slot, s.blocks - 1).feed_forward_amax.output_gradient;
  if (options_.last) {
    const void* hidden_gradient = nullptr;
    if (mtp_.has_value()) {
      MT_RETURN_IF_ERROR(MtpBackward(context_, mtp_->weights, head_.norm.output, NextTokens(slot),
                                     mtp_->activations, mtp_->scratch));
      hidden_gradient = mtp_->scratch.hidden_gradient;
    }
    MT_RETURN_IF_ERROR(
        HeadBackward(context_, head_weights_, head_, hidden_gradient, scratch_.gradient, amax));
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
  if (positions_.table != nullptr) {
    MT_RETURN_IF_ERROR(
        PositionsBackward(context_, positions_, position_ids_.Of(slot), scratch_.gradient));
  }
  return EmbeddingBackward(context_, input_ids_.Of(slot), scratch_.gradient,
                           scratch_.attention.part.gathered_gradient, table_gradient_);
}

absl::Status Stage::Logits(int64_t row) {
  MT_RETURN_IF_ERROR(RunBlocks(0));
  return HeadLogits(context_, head_weights_, output_, BlockOf(0, context_.shape.blocks - 1).middle,
                    row, head_);
}

}  // namespace mt
