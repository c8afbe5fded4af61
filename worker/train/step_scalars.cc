#include "worker/train/step_scalars.h"

#include <algorithm>

namespace mt {

absl::StatusOr<std::unique_ptr<StepScalars>> StepScalars::Create(const NumberTypes& types,
                                                                 int64_t rows,
                                                                 Operations* operations) {
  MT_ASSIGN_OR_RETURN(PinnedMemory host,
                      PinnedMemory::Create(operations->backend(), 2 * kCount * sizeof(double)));
  std::unique_ptr<StepScalars> scalars(new StepScalars(types, rows, operations, std::move(host)));
  MT_RETURN_IF_ERROR(operations->Need<MT_OP_SUM>({.dtype = types.statistic, .count = rows}));
  MT_RETURN_IF_ERROR(operations->Need<MT_OP_CLIP_FACTOR>({}));
  MT_ASSIGN_OR_RETURN(void* device, operations->Allocate(kCount * sizeof(double)));
  scalars->device_ = static_cast<double*>(device);
  return scalars;
}

StepScalars::~StepScalars() {
  if (device_ != nullptr) operations_->Free(device_);
}

absl::Status StepScalars::Begin(StepVotes votes, const LabelCounts& own,
                                const LabelCounts& of_all) {
  std::fill_n(to_device(), static_cast<int>(kCount), 0.0);
  to_device()[kCheckpoint] = votes.checkpoint ? 1 : 0;
  to_device()[kStop] = votes.stop ? 1 : 0;
  to_device()[kLabels] = own.main;
  to_device()[kMtpLabels] = own.mtp;
  to_device()[kLossScale] = of_all.main > 0 ? 1 / of_all.main : 0;
  to_device()[kMtpLossScale] = of_all.mtp > 0 ? 1 / of_all.mtp : 0;
  const Backend& backend = operations_->backend();
  return backend.ToStatus(
      backend.abi().copy_to_device(device_, to_device(), kCount * sizeof(double), nullptr),
      "copying the votes");
}

absl::Status StepScalars::AddLoss(const void* row_loss) { return AddRows(row_loss, kLoss); }
absl::Status StepScalars::AddMtpLoss(const void* row_loss) { return AddRows(row_loss, kMtpLoss); }

absl::Status StepScalars::AddRows(const void* row_loss, Index sum) {
  return operations_->Run<MT_OP_SUM>({.dtype = types_.statistic,
                                      .data = row_loss,
                                      .count = rows_,
                                      .result = device_ + sum,
                                      .accumulate = 1});
}

absl::Status StepScalars::Sum(Communicator* data, Communicator* model) {
  for (Communicator* group : {data, model}) {
    if (group != nullptr)
      MT_RETURN_IF_ERROR(group->AllReduce(device_, kSummed, MT_F64, ReduceOp::kSum));
  }
  return absl::OkStatus();
}

absl::Status StepScalars::MakeClipFactor(double limit) {
  return operations_->Run<MT_OP_CLIP_FACTOR>({.squared_norm = device_ + kSquaredNorm,
                                              .loss = device_ + kLoss,
                                              .factor = device_ + kClipFactor,
                                              .limit = limit});
}

absl::Status StepScalars::End() {
  const Backend& backend = operations_->backend();
  return backend.ToStatus(
      backend.abi().copy_to_host(from_device(), device_, kCount * sizeof(double), nullptr),
      "copying loss and gradient norm");
}

StepScalars::Values StepScalars::Read() const {
  const double* host = from_device();
  return {.squared_norm = host[kSquaredNorm],
          .loss_sum = host[kLoss],
          .mtp_loss_sum = host[kMtpLoss],
          .labels = {.main = host[kLabels], .mtp = host[kMtpLabels]},
          .votes = {.checkpoint = host[kCheckpoint] > 0, .stop = host[kStop] > 0}};
}

}  // namespace mt
