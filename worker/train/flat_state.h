// Weights, gradients and optimizer state of one rank: flat buffers that share one layout
// (common/spec/parameter_layout.h).
//
// ZeRO-1 (Rajbhandari et al. 2020) is a policy on them: the buffers are cut into equal shards over
// the data group; gradients are reduce-scattered, the optimizer runs on the own shard, weights are
// gathered. Without it gradients are all-reduced and every data rank updates everything. Either way
// a data rank saves its own shard only.
#pragma once

#include <memory>
#include <vector>

#include "common/spec/parameter_layout.h"
#include "common/status.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/state.h"
#include "worker/comm/communicator.h"

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
    mt_dtype dtype = MT_F32;
    bool trained = true;  // false: weights only
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

  absl::Status Initialise(uint64_t seed);
  // What a step only adds to: norm weights and, if asked, the embedding table. Other matrices are overwritten (context.h).
  absl::Status ClearAddedGradients(bool table);

  // Sums over `data` (null = alone): afterwards the gradient of `owned()` is whole.
  absl::Status SumGradientsOverData(Communicator* data);
  // Sum of squares of the owned gradient elements that no other rank counts, into *result (device).
  absl::Status SquaredGradientSum(bool count_norms, double* result);
  // AdamW with gradient * gradient_scale; `step` counts from 1.
  absl::Status Update(const v1::OptimizerSpec& optimizer, double lr, int64_t step,
                      double gradient_scale);
  // After Update, or after owned weights were loaded.
  absl::Status GatherWeights(Communicator* data);

  // What the optimizer of this rank updates: its shard under ZeRO-1, else everything.
  FlatRange owned() const { return zero_ ? shard_ : FlatRange{0, layout_.size}; }
  std::vector<TensorBox> CheckpointBoxes() const;
  std::vector<TensorBox> LoadBoxes() const;
  std::vector<TensorBox> GradientBoxes() const;
  void* GradientAt(int64_t element) const { return At(gradients_, element); }

  int64_t weight_bytes() const { return layout_.size * element_bytes_; }
  int64_t gradient_bytes() const { return trained_ ? weight_bytes() : 0; }
  int64_t optimizer_bytes() const { return trained_ ? 2 * owned().count * element_bytes_ : 0; }

 private:
  FlatState(ParameterLayout layout, const Options& options, Operations* operations);
  absl::Status Allocate();
  absl::Status DeclareOperations();
  void* At(void* base, int64_t element) const {
    return static_cast<char*>(base) + element * element_bytes_;
  }

  const ParameterLayout layout_;
  const mt_dtype dtype_;
  const int64_t element_bytes_;
  const bool trained_, zero_;
  const FlatRange shard_;
  Operations* const operations_;
  void* weights_ = nullptr;
  void* gradients_ = nullptr;
  void* exp_avg_ = nullptr;     // of owned()
  void* exp_avg_sq_ = nullptr;  // of owned()
};

}  // namespace mt
