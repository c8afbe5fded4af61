// Finds what a stage's parts borrow: weights and gradients in the flat buffers, tensors in the arena. One function per part.
#pragma once

#include <string>

#include "common/spec/activation_plan.h"
#include "worker/model/decoder_block.h"
#include "worker/model/head.h"
#include "worker/model/mtp.h"
#include "worker/model/positions.h"
#include "worker/train/expert_balance.h"
#include "worker/train/flat_state.h"

namespace mt {

class StageBinder {
 public:
  // All outlive the binder. `balance` is null in a model without experts.
  StageBinder(const ModelContext& context, const ActivationPlan& plan, void* arena,
              const FlatState& state, const ExpertBalance* balance)
      : context_(context), plan_(plan), arena_(arena), state_(state), balance_(balance) {}

  // Null if the stage has no such tensor.
  void* Tensor(absl::string_view name, int64_t copy = 0) const;
  // Of block `block` of the stage (counted from 0) and micro-batch slot `slot`; null if it has no such tensor.
  void* TensorOf(absl::string_view name, int64_t slot, int64_t block) const;

  BlockWeights WeightsOf(int64_t layer) const;
  BlockActivations ActivationsOf(int64_t slot, int64_t block) const;
  BlockScratch Scratch() const;
  HeadWeights Head(bool tied) const;
  HeadTensors HeadScratch() const;
  // Of multi-token prediction (bind_mtp.cc); only where the stage has it.
  MtpWeights MtpWeightsOf(bool tied) const;
  MtpActivations MtpActivationsOf() const;
  MtpScratch MtpScratchOf() const;
  PositionWeights Positions() const;

 private:
  // `name` without ".weight".
  NormWeights Norm(const std::string& name, int64_t columns) const;
  // A group of neighbours (LogicalParameter::group) by the name of its first, without ".weight".
  LinearLayer Linear(const std::string& name, int64_t in, int64_t out, bool column_parallel) const;
  AttentionWeights AttentionOf(int64_t layer, const std::string& block) const;
  MlaWeights MlaOf(const std::string& block) const;
  FeedForwardWeights FeedForwardOf(const std::string& block) const;
  // Of all experts: from `first`, that of expert 0 without ".weight".
  ExpertMatrices Experts(const std::string& first, int64_t in, int64_t out) const;
  MoeWeights MoeOf(const std::string& block, int64_t layer) const;
  MoeActivations MoeActivationsOf(int64_t slot, int64_t block) const;
  MoeScratch MoeScratchOf() const;
  PartScratch Part() const;

  const ModelContext& context_;
  const ActivationPlan& plan_;
  void* const arena_;
  const FlatState& state_;
  const ExpertBalance* const balance_;
};

}  // namespace mt
