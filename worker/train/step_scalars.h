// The numbers of a step that cross from the device to the host, or between ranks: squared gradient
// norm, loss, labels and votes. They are made, summed over the job and used where they are, as float64 in
// device memory; the host sees them once, at the step's end.
#pragma once

#include <memory>

#include "common/status.h"
#include "worker/backend/operations.h"
#include "worker/comm/communicator.h"
#include "worker/model/number_types.h"
#include "worker/train/device_objects.h"
#include "worker/train/step_samples.h"

namespace mt {

// What this rank asks of all, or what any rank has asked: both travel with the loss, so that asking
// costs nothing.
struct StepVotes {
  bool checkpoint = false;
  bool stop = false;
};

class StepScalars {
 public:
  // Row losses have type `types.statistic`, `rows` of them per micro-batch.
  static absl::StatusOr<std::unique_ptr<StepScalars>> Create(const NumberTypes& types, int64_t rows,
                                                             Operations* operations);
  ~StepScalars();
  StepScalars(const StepScalars&) = delete;
  StepScalars& operator=(const StepScalars&) = delete;

  // All sums zero, this rank's votes and the labels that it counts in place. After the step before has been waited for. `of_all`: labels of
  // the global batch, from which loss_scale and mtp_loss_scale are made; only where those are read.
  absl::Status Begin(StepVotes votes, const LabelCounts& own, const LabelCounts& of_all = {});
  // On the device: one over the labels of the global batch, 0 if there is none.
  const double* loss_scale() const { return device_ + kLossScale; }
  const double* mtp_loss_scale() const { return device_ + kMtpLossScale; }
  absl::Status AddLoss(const void* row_loss);
  absl::Status AddMtpLoss(const void* row_loss);  // of multi-token prediction
  double* squared_norm() { return device_ + kSquaredNorm; }
  // Everything that was counted by exactly one rank, over `data` and then over `model`; null = alone.
  absl::Status Sum(Communicator* data, Communicator* model);
  // The factor that clips the gradient to `limit` (not positive: no limit); NaN if the loss or the
  // norm is not finite, so that the update changes nothing.
  absl::Status MakeClipFactor(double limit);
  const double* clip_factor() const { return device_ + kClipFactor; }
  // Enqueues the copy to the host.
  absl::Status End();

  // After the device has done all of it.
  struct Values {
    double squared_norm = 0, loss_sum = 0, mtp_loss_sum = 0;
    LabelCounts labels;  // of the global batch
    StepVotes votes;
    // Of the labels; 0 where there is none.
    static double Mean(double sum, double labels) { return labels > 0 ? sum / labels : 0; }
  };
  Values Read() const;

 private:
  enum Index {
    kSquaredNorm,
    kLoss,
    kMtpLoss,
    kLabels,
    kMtpLabels,
    kCheckpoint,
    kStop,
    kSummed,
    kClipFactor = kSummed,
    kLossScale,
    kMtpLossScale,
    kCount
  };

  StepScalars(const NumberTypes& types, int64_t rows, Operations* operations, PinnedMemory host)
      : types_(types), rows_(rows), operations_(operations), host_(std::move(host)) {}
  absl::Status AddRows(const void* row_loss, Index sum);
  double* to_device() const { return host_.as<double>(); }
  double* from_device() const { return host_.as<double>() + kCount; }

  const NumberTypes types_;
  const int64_t rows_;
  Operations* const operations_;
  PinnedMemory host_;  // what is copied to the device, then what comes back
  double* device_ = nullptr;
};

}  // namespace mt
