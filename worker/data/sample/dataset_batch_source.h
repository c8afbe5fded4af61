// The trainer's samples out of an indexed dataset.
#pragma once

#include <memory>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/data/sample/gpt_dataset.h"
#include "worker/train/batch_source.h"

namespace mt {

class DatasetBatchSource : public BatchSource {
 public:
  explicit DatasetBatchSource(std::unique_ptr<GptDataset> dataset) : dataset_(std::move(dataset)) {}
  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override;
  const GptDataset& dataset() const { return *dataset_; }

 private:
  std::unique_ptr<GptDataset> dataset_;
};

// What a resolved spec says about its data: as many samples as the whole run takes, so that the
// order never depends on where a run was interrupted.
GptDatasetOptions TrainingDataOptions(const v1::JobSpec& spec);

// Those of its evaluations: data.validation whole, else the second share of data.split; as many samples as one evaluation takes,
// so that each sees the same ones.
GptDatasetOptions ValidationDataOptions(const v1::JobSpec& spec);

// Errors as GptDataset::Open, with FAILED_PRECONDITION in place of DATA_LOSS, which in a rank means its checkpoint.
absl::StatusOr<std::unique_ptr<DatasetBatchSource>> OpenTrainingData(Env* env,
                                                                     const v1::JobSpec& spec);

absl::StatusOr<std::unique_ptr<DatasetBatchSource>> OpenValidationData(Env* env,
                                                                       const v1::JobSpec& spec);

// The same for a whole spec, before any rank is started: CheckTrainingData of gpt_dataset.h, also of what is held out if it is
// evaluated. Reads up to 64 Mi tokens of each.
absl::Status CheckTrainingData(Env* env, const v1::JobSpec& spec);

}  // namespace mt
