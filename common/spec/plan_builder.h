// How an activation plan is written: every part of the model declares its tensors in a function of its own, one file per part.
// Which of them share memory follows from the moments of their lives.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/spec/activation_plan.h"
#include "common/spec/mesh.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// The moments of one micro-batch's way through a stage, in order. A block's moments repeat for
// every block; a scratch tensor must not outlive its block, but for `stream.delta`, which carries a
// block's output into the next one's first norm. They are named after the dense block; other parts live in the same ones.
enum Moment {
  kInput,
  kFirstNorm,
  kQkv,
  kAttention,
  kOutput,
  kSecondNorm,
  kGateUp,
  kDown,
  kHead,
  kStreamGradient,
  kDownBackward,
  kActivationBackward,
  kGateUpBackward,
  kSecondNormBackward,
  kOutputBackward,
  kAttentionBackward,
  kQkvBackward,
  kFirstNormBackward,
  kInputBackward,
};

class PlanBuilder {
 public:
  using Sizes = std::vector<int64_t>;
  using HasIt = std::function<bool(int64_t layer)>;

  PlanBuilder(const v1::JobSpec& spec, const Mesh& mesh, int rank, PlanPurpose purpose);

  const RankShape& shape() const { return shape_; }
  const v1::ModelSpec& model() const { return model_; }
  bool first_stage() const { return first_stage_; }
  bool last_stage() const { return last_stage_; }
  bool mtp() const { return shape_.mtp_blocks > 0; }  // multi-token prediction, on this stage
  bool recompute() const { return recompute_; }
  // Whether rows know their documents, and whether positions begin anew with each. Text is generated without.
  bool document_mask() const { return document_mask_; }
  bool reset_positions() const { return reset_positions_; }
  bool fp8() const { return fp8_; }
  int64_t tensor() const { return tensor_; }  // ranks of the tensor group
  // Whether any block of this stage is such.
  bool Any(const HasIt& has_it) const;

  // Alive all the time.
  void Keep(const char* name, Sizes shape, int64_t copies, int64_t element_bytes);
  // Of the blocks that have it: kept for every one of them and every micro-batch in flight, if there is a backward pass.
  void KeepOfBlocks(const char* name, Sizes shape, int64_t element_bytes,
                    const HasIt& has_it = EveryBlock);
  // As KeepOfBlocks, but made again in the backward pass if the job recomputes: then one copy for all blocks.
  void Block(const char* name, Sizes shape, int64_t element_bytes,
             const HasIt& has_it = EveryBlock);
  // Keys and values: as Block; kept for every block where text is generated.
  void Cached(const char* name, Sizes shape, int64_t element_bytes);
  // From `first_use` to `last_use`, both included, of one pass; one copy for all blocks.
  void Scratch(const char* name, Sizes shape, Moment first_use, Moment last_use,
               int64_t element_bytes);
  // Of the data type.
  void Scratch(const char* name, Sizes shape, Moment first_use, Moment last_use) {
    Scratch(name, std::move(shape), first_use, last_use, shape_.element_bytes);
  }

  // Gives every tensor its place. The last call.
  ActivationPlan Finish();

 private:
  static bool EveryBlock(int64_t) { return true; }
  PlannedTensor& Add(const char* name, Sizes shape, KeepPolicy policy, Moment first_use,
                     Moment last_use, int64_t element_bytes);
  void AddOfBlocks(const char* name, Sizes shape, int64_t element_bytes, const HasIt& has_it,
                   bool kept);
  // Where each block's copy is; returns how many there are.
  int64_t IndexBlocks(const HasIt& has_it, std::vector<int64_t>* copy_of_block) const;

  const v1::ModelSpec model_;
  const RankShape shape_;
  const bool first_stage_, last_stage_, recompute_, fp8_, generation_;
  const bool document_mask_, reset_positions_;
  const int64_t tensor_;
  ActivationPlan plan_;
};

// The parts, in the order of the forward pass; of what the rank's stage has.
void PlanStream(PlanBuilder& plan);       // tokens, and the residual stream with the norms on it
void PlanAttention(PlanBuilder& plan);    // grouped-query
void PlanMla(PlanBuilder& plan);          // multi-head latent attention
void PlanFeedForward(PlanBuilder& plan);  // dense
void PlanMoe(PlanBuilder& plan);
void PlanFp8(PlanBuilder& plan);
void PlanHead(PlanBuilder& plan);
void PlanMtp(PlanBuilder& plan);  // multi-token prediction, but for its block

}  // namespace mt
