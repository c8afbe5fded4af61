// Weights, gradients and optimizer state of one rank: flat buffers that share one layout
// (common/spec/parameter_layout.h).
//
// Weights that products read have the data type. Where that is narrower than the state type (BF16),
// the optimizer updates master weights of its own, of the range it owns, and the others are always
// those, rounded once; a checkpoint holds the master weights. Otherwise the two are one.
//
// ZeRO-1 (Rajbhandari et al. 2020) is a policy on them: each bucket is cut into equal parts over the data group; gradients are
// reduce-scattered, the optimizer runs on the own parts, weights are gathered. Without it gradients are all-reduced and every
// data rank updates everything. Either way a data rank saves its own parts only.
//
// A bucket's gradients are summed while the backward pass goes on with the blocks before it, between the data group's
// BeginOverlap and EndOverlap, which are the caller's (communicator.h).
#pragma once

#include <memory>
#include <vector>

#include "common/spec/parameter_layout.h"
#include "common/status.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/state.h"
#include "worker/comm/communicator.h"
#include "worker/model/number_types.h"

namespace mt {

// Boxes of the part of `range` that is made of logical elements, over `base` (the flat buffer's
// element `base_first`). A run of a row-major matrix is at most three rectangles: the rest of a
// row, whole rows, the beginning of a row. only_saved: leaves out what another rank of the model
// group has too and saves.
std::vector<TensorBox> BoxesOf(const ParameterLayout& layout, FlatRange range, const char* prefix,
                               mt_dtype dtype, void* base, int64_t base_first, bool only_saved);

class FlatState {
 public:
  struct Options {
    NumberTypes types;
    bool trained = true;  // false: weights only, in a type that a checkpoint has
    int data_ranks = 1, data_rank = 0;
    bool zero = false;
  };
  static absl::StatusOr<std::unique_ptr<FlatState>> Create(ParameterLayout layout,
                                                           const Options& options,
                                                           Operations* operations);
  ~FlatState();
  FlatState(const FlatState&) = delete;
  FlatState& operator=(const FlatState&) = delete;

  const ParameterLayout& layout() const { return layout_; }
  // Null if this rank has no such parameter.
  void* Weight(absl::string_view name) const;
  void* Gradient(absl::string_view name) const;

  // Fresh weights of what this rank owns; FinishWeights makes the others.
  absl::Status Initialise(uint64_t seed);
  // What a step only adds to (ParameterLayout::added) and, if asked, the embedding table. Other matrices are overwritten
  // (context.h).
  absl::Status ClearAddedGradients(bool table);

  // Sums the buckets that are complete with `block` (FlatBucket) over `data` (null = alone): once all are, the gradient of
  // what is owned is whole.
  absl::Status SumGradientsOverData(Communicator* data, int64_t block);
  // Sum of squares of the owned gradient elements that no other rank counts, into *result (device).
  absl::Status SquaredGradientSum(bool count_replicated, double* result);
  // AdamW with gradient * *gradient_scale (device); if that is not finite, nothing changes. `step`
  // counts from 1.
  absl::Status Update(const v1::OptimizerSpec& optimizer, double lr, int64_t step,
                      const double* gradient_scale);
  // After Update: brings the weights that other data ranks updated.
  absl::Status GatherWeights(Communicator* data);
  // After Initialise, or after owned weights were loaded: working weights from master weights, and
  // those of other data ranks.
  absl::Status FinishWeights(Communicator* data);

  std::vector<TensorBox> CheckpointBoxes() const;
  std::vector<TensorBox> LoadBoxes() const;
  std::vector<TensorBox> GradientBoxes() const;
  void* GradientAt(int64_t element) const { return At(gradients_, element, types_.gradient); }

  int64_t weight_bytes() const { return layout_.size * BytesPerNumber(types_.data); }
  int64_t gradient_bytes() const {
    return trained_ ? layout_.size * BytesPerNumber(types_.gradient) : 0;
  }
  int64_t optimizer_bytes() const {
    return trained_ ? (has_master() ? 3 : 2) * owned_count_ * BytesPerNumber(types_.state) : 0;
  }

 private:
  FlatState(ParameterLayout layout, const Options& options, Operations* operations);
  absl::Status Allocate();
  absl::Status DeclareOperations();
  bool has_master() const { return trained_ && types_.data != types_.state; }
  static void* At(void* base, int64_t element, mt_dtype dtype) {
    return static_cast<char*>(base) + element * BytesPerNumber(dtype);
  }
  // Of the owned range that begins at `element` of the layout and at `stored` of what is kept of owned ranges.
  void* MasterAt(int64_t element, int64_t stored) const;
  // body(range, where it begins in what is kept of owned ranges), for each.
  template <typename Body>
  absl::Status ForOwned(Body body) const;
  std::vector<TensorBox> StateBoxes(const std::vector<FlatRange>& ranges, bool only_saved) const;
  absl::Status Zero(void* buffer, int64_t count, mt_dtype dtype);

  const ParameterLayout layout_;
  const NumberTypes types_;
  const bool trained_, zero_;
  const std::vector<FlatRange> parts_;  // of this data rank
  const std::vector<FlatRange>
      owned_;                // what the optimizer updates: the parts under ZeRO-1, else everything
  int64_t owned_count_ = 0;  // elements
  Operations* const operations_;
  void* weights_ = nullptr;
  void* gradients_ = nullptr;
  // Of the owned ranges, one behind the other:
  void* master_ = nullptr;  // null where weights_ are the master weights
  void* exp_avg_ = nullptr;
  void* exp_avg_sq_ = nullptr;
};

}  // namespace mt
