// One pipeline stage of the model: its blocks, with embedding and head where they belong, over one
// arena built from the activation plan. It knows one micro-batch at a time, in one of `in_flight`
// slots.
//
// Invariant: between Forward(slot) and Backward(slot) nothing else writes the slot's kept tensors.
// On the last stage Backward of a slot comes right after its Forward (head tensors are scratch).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "common/spec/activation_plan.h"
#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/decoder_block.h"
#include "worker/model/fp8_weights.h"
#include "worker/model/head.h"
#include "worker/model/mtp.h"
#include "worker/model/positions.h"
#include "worker/train/flat_state.h"
#include "worker/train/stage_binder.h"
#include "worker/train/token_staging.h"

namespace mt {

class Stage {
 public:
  struct Options {
    bool first = true, last = true;
    bool recompute = false;
    bool tied = false;
    LossOptions loss;
    LossOptions mtp_loss;
    bool masked = false;           // labels may be masked: targets are not always the next tokens
    bool reset_positions = false;  // positions come with each micro-batch
    const ExpertBalance* balance = nullptr;  // of a model with experts; outlives the stage
  };
  // Allocates the arena, makes the rotation table or position ids. `state` and `operations` outlive the stage.
  static absl::StatusOr<std::unique_ptr<Stage>> Create(const ModelContext& context,
                                                       ActivationPlan plan, const Options& options,
                                                       FlatState* state, Operations* operations);
  ~Stage();
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  // Device buffers of a slot, to be filled before Forward: what the stage has of token ids (first stage), targets and next tokens
  // (last stage; what multi-token prediction reads behind the targets is in place), documents and positions; and
  // the previous stage's output (other stages).
  TokenRows tokens(int64_t slot) const;
  void* input(int64_t slot) const { return BlockOf(slot, 0).input; }
  // Of a stream tensor, as sent between stages.
  int64_t stream_bytes() const {
    return context_.shape.stream_rows * context_.shape.hidden * context_.element_bytes();
  }

  // Last stage: row losses in row_loss(), the head's gradient begun. Else the stage's output in
  // output().
  absl::Status Forward(int64_t slot);
  // The same for an evaluation: row losses are the cross entropy alone, and neither gradients nor multi-token prediction are
  // touched.
  absl::Status ForwardOnly(int64_t slot);
  // On the last stage from the loss, else from gradient(), which the caller has filled with the
  // gradient of output(). Afterwards gradient() holds the gradient of input().
  // `completed`, if there is one, is told of each block (by its layer's number, the head being the one after the last) once
  // nothing will be added to the gradients of its matrices any more in this pass.
  using Completed = std::function<absl::Status(int64_t block)>;
  absl::Status Backward(int64_t slot, const Completed& completed = nullptr);
  // Of the passes from here on; what an ExpertBalance scales is read anew.
  void SetLoss(const LossOptions& loss, const LossOptions& mtp_loss);
  // After every change of the weights, before the next pass. All of the tensor group call it.
  absl::Status WeightsChanged();
  // For generating text (a plan of PlanPurpose::kGeneration): logits of the token after row `row` of this pass (batch of one), in
  // logits(). First and last stage in one.
  absl::Status Logits(int64_t row);

  const void* output() const { return output_; }  // (stream_rows, C)
  void* gradient() const { return scratch_.gradient; }
  const void* row_loss() const { return head_.row_loss; }  // (N)
  // (N), without their coefficient; null without multi-token prediction on this stage.
  const void* mtp_row_loss() const {
    return mtp_.has_value() ? mtp_->activations.head.row_loss : nullptr;
  }
  const void* logits() const { return head_.logits; }

  ModelContext& context() { return context_; }
  int64_t arena_bytes() const { return plan_.arena_bytes; }
  // Of copies of weights that the stage makes for itself.
  int64_t weight_copy_bytes() const { return fp8_weights_ == nullptr ? 0 : fp8_weights_->bytes(); }

 private:
  Stage(const ModelContext& context, ActivationPlan plan, const Options& options, FlatState* state,
        Operations* operations);
  // Of slot 0, null where the stage has none; elements from slot to slot, 0 where all slots share them. Positions are there where
  // they are learned, or begin anew with each document.
  struct SlotRows {
    int32_t* first = nullptr;
    int64_t stride = 0;
    int32_t* Of(int64_t slot) const { return first == nullptr ? nullptr : first + slot * stride; }
  };
  // Rotation table and position ids.
  absl::Status FillTables(const StageBinder& binder);
  absl::Status CopyToDevice(void* destination, const void* source, int64_t bytes);
  // Marks the row behind each slot's targets: it has none.
  absl::Status EndTargets();
  absl::Status Bind();
  // Slots and scratch of precision fp8; nothing otherwise.
  absl::Status BindFp8(const StageBinder& binder);
  const BlockActivations& BlockOf(int64_t slot, int64_t block) const {
    return activations_[static_cast<size_t>(slot * context_.shape.blocks + block)];
  }
  SlotRows RowsOf(const StageBinder& binder, absl::string_view name) const;
  // What blocks know of a slot's micro-batch.
  void Enter(int64_t slot);
  // What multi-token prediction looks up: where no label is masked, the targets; and what it predicts, those of the next position.
  const int32_t* NextTokens(int64_t slot) const {
    return options_.masked ? next_tokens_.Of(slot) : targets_.Of(slot);
  }
  const int32_t* MtpTargets(int64_t slot) const {
    return options_.masked ? mtp_targets_.Of(slot) : targets_.Of(slot) + context_.shape.batch;
  }
  // Embedding and blocks; sets output_ to the last block's delta.
  absl::Status RunBlocks(int64_t slot);
  // All of Forward but multi-token prediction.
  absl::Status ForwardMain(int64_t slot, const LossOptions& loss);

  ModelContext context_;
  const ActivationPlan plan_;
  Options options_;
  FlatState* const state_;
  Operations* const operations_;
  void* arena_ = nullptr;
  std::unique_ptr<Fp8Weights> fp8_weights_;  // null unless precision is fp8

  std::vector<BlockWeights> weights_;          // by block
  std::vector<BlockActivations> activations_;  // by slot, then block
  BlockScratch scratch_;
  HeadWeights head_weights_;
  HeadTensors head_;
  struct Mtp {
    MtpWeights weights;
    MtpActivations activations;
    MtpScratch scratch;
  };
  std::optional<Mtp> mtp_;
  void* table_ = nullptr;  // embedding
  void* table_gradient_ = nullptr;
  PositionWeights positions_;
  SlotRows input_ids_, targets_, next_tokens_, mtp_targets_, document_start_, position_ids_;
  void* output_ = nullptr;
};

}  // namespace mt
