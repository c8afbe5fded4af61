// How evenly tokens go to experts: what a step counts of it, and the state that follows from it.
//
//   selection bias   per MoE layer (E), the model's mlp.gate.e_score_correction_bias: once per step += rate * sign(target - load),
//                    target = tokens of the global batch * top_k / E (arXiv 2408.15664)
//   last loads       per MoE layer (E), with balance global: choices in the whole last global batch; the loss of the next step
//                    is made from them (worker/model/moe_router.h)
// Both are the same on all data and tensor ranks of a stage, are saved once, and stay as they were by a step whose loss or
// gradient is not finite. The selection bias counts as a weight, the loads as optimizer state.
//
// Counts are added to by the forward passes, on the device, and summed over the job once per step; the host sees them at its end.
// Methods are called in the order in which they stand here, by all ranks; nothing waits for the host.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/spec/mesh.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/state.h"
#include "worker/comm/communicator.h"
#include "worker/model/moe_router.h"
#include "worker/model/number_types.h"
#include "worker/train/device_objects.h"

namespace mt {

// Of one step and the whole job.
struct ExpertLoad {
  int64_t first_layer = 0;         // the first block with experts; all from there on have them
  std::vector<double> load_ratio;  // by block: of the busiest expert to the mean
  double dropped = 0;              // choices that met a full expert, over all blocks
};

class ExpertBalance {
 public:
  struct Options {
    NumberTypes types;
    bool trained = true;  // false: the selection biases only
  };
  // For the blocks of `rank`'s stage. Null if the model has no experts. `operations` outlives it.
  static absl::StatusOr<std::unique_ptr<ExpertBalance>> Create(const v1::JobSpec& spec,
                                                               const Mesh& mesh, int rank,
                                                               const Options& options,
                                                               Operations* operations);
  ~ExpertBalance();
  ExpertBalance(const ExpertBalance&) = delete;
  ExpertBalance& operator=(const ExpertBalance&) = delete;

  // What the router of block `layer`, one of the stage, borrows. Null without selection bias.
  const void* SelectionBias(int64_t layer) const;
  MoeTraining Training(int64_t layer) const;

  // The state of a fresh run.
  absl::Status Initialise();

  // From here on steps have so many tokens; the step before had `before` (any number if there was none). Afterwards Training gives
  // other scales. Until it is called both are those of training.global_batch.
  void SetTokens(int64_t tokens, int64_t before);

  // Counts from zero.
  absl::Status Begin();
  // Over `data` and then over `model`; null = alone.
  absl::Status Sum(Communicator* data, Communicator* model);
  // Selection biases; if *gradient_scale (device) is not finite, nothing changes.
  absl::Status Update(const double* gradient_scale);
  // Enqueues the copy to the host.
  absl::Status End();
  // After the device has done all of it. With their coefficients, as the gradient has them: "balance", "router_z".
  std::map<std::string, double> Losses() const;
  ExpertLoad Load() const;
  // The step's numbers were finite: its loads are now the last.
  absl::Status Keep();

  // What this rank saves, and what it must be filled with.
  std::vector<TensorBox> CheckpointBoxes() const;
  std::vector<TensorBox> LoadBoxes() const;

 private:
  ExpertBalance(const v1::JobSpec& spec, const Mesh& mesh, int rank, const Options& options,
                Operations* operations);
  absl::Status Allocate();
  absl::Status DeclareOperations();
  bool has_bias() const { return moe_.selection_bias(); }
  bool global() const { return balance_ == v1::MoeSpec::BALANCE_GLOBAL; }
  int64_t numbers() const { return own_layers_ * stride_; }
  absl::Status Zero(void* data, int64_t bytes);
  absl::Status Copy(mt_dtype from, const void* source, mt_dtype to, void* destination,
                    int64_t count);
  // In the report: loads of all layers of the model, then these.
  enum Scalar { kBalanceLoss, kZSum, kDropped, kScalars };
  int64_t report_size() const { return all_layers_ * stride_ + kScalars; }
  int64_t ScalarAt(Scalar scalar) const { return all_layers_ * stride_ + scalar; }
  double* OwnReport() const { return report_ + (first_ - first_of_all_) * stride_; }

  const v1::MoeSpec moe_;
  const Options options_;
  Operations* const operations_;
  const v1::MoeSpec::Balance balance_;
  int64_t tokens_;        // of the step
  const int64_t stride_;  // elements from one layer to the next
  const bool first_data_, first_tensor_;
  const int64_t sequence_tokens_, micro_batch_tokens_;
  double balance_scale_ = 0, z_scale_ = 0;
  int64_t first_of_all_ = 0, all_layers_ = 0;  // MoE layers of the model
  int64_t first_ = 0, own_layers_ = 0;         // of this stage

  void* memory_ = nullptr;  // of all that follows; (own layers, stride) unless told otherwise
  void* bias_ = nullptr;    // of the state type
  double* last_load_ = nullptr;
  void* counts_ = nullptr;                        // cleared by Begin: the four that follow
  void* load_ = nullptr;                          // of the statistic type
  void* balance_loss_ = nullptr;                  // one of the statistic type
  double *z_sum_ = nullptr, *dropped_ = nullptr;  // one
  int64_t counts_bytes_ = 0;
  void* global_gradient_ = nullptr;  // of the statistic type
  double* global_gradient64_ = nullptr;
  void* update_load_ = nullptr;  // of the gradient type
  double* summed_load_ = nullptr;
  double* report_ = nullptr;          // (report_size)
  std::optional<PinnedMemory> host_;  // (report_size) float64
};

}  // namespace mt
