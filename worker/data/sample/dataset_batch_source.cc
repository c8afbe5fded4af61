#include "worker/data/sample/dataset_batch_source.h"

#include <limits>

namespace mt {
namespace {

// DATA_LOSS from a rank means that the checkpoint it started from is broken, and the one before is tried. Broken training
// data is not that: another checkpoint would not help.
absl::Status NotTheCheckpoint(const absl::Status& status) {
  return absl::IsDataLoss(status) ? absl::FailedPreconditionError(status.message()) : status;
}

const char* HeldOutKey(const v1::JobSpec& spec) {
  return spec.data().validation().empty() ? "data.split, the second share" : "data.validation";
}

}  // namespace

absl::Status DatasetBatchSource::Fetch(std::span<const int64_t> sample_ids, const Batch& batch) {
  const std::span<int32_t> tokens = batch.tokens;
  const size_t sample_tokens = static_cast<size_t>(dataset_->sequence_length()) + 1;
  if (tokens.size() != sample_ids.size() * sample_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(sample_ids.size(), " samples have ",
                                                   sample_ids.size() * sample_tokens,
                                                   " tokens, not ", tokens.size()));
  }
  for (size_t i = 0; i < sample_ids.size(); ++i) {
    MT_RETURN_IF_ERROR(NotTheCheckpoint(
        dataset_->Fetch(sample_ids[i], tokens.subspan(i * sample_tokens, sample_tokens))));
  }
  return absl::OkStatus();
}

GptDatasetOptions TrainingDataOptions(const v1::JobSpec& spec) {
  GptDatasetOptions options;
  options.prefix = spec.data().train(0).prefix();
  if (!spec.data().split().empty()) options.split = spec.data().split();
  options.sequence_length = spec.data().sequence_length();
  if (__builtin_mul_overflow(spec.training().steps(), spec.training().global_batch(),
                             &options.num_samples)) {
    options.num_samples =
        std::numeric_limits<int64_t>::max();  // which no order can hold: refused when opened
  }
  options.seed = spec.data().has_seed() ? spec.data().seed() : spec.training().seed();
  options.vocab_size = spec.model().vocab();
  return options;
}

GptDatasetOptions ValidationDataOptions(const v1::JobSpec& spec) {
  GptDatasetOptions options = TrainingDataOptions(spec);
  if (spec.data().validation().empty()) {
    options.share = 1;
  } else {
    options.prefix = spec.data().validation(0).prefix();
    options.split = "1,0,0";
  }
  options.num_samples = spec.training().evaluation().batches() * spec.training().global_batch();
  return options;
}

absl::StatusOr<std::unique_ptr<DatasetBatchSource>> OpenTrainingData(Env* env,
                                                                     const v1::JobSpec& spec) {
  absl::StatusOr<std::unique_ptr<GptDataset>> dataset =
      GptDataset::Open(env, TrainingDataOptions(spec));
  if (!dataset.ok()) return NotTheCheckpoint(Annotate(dataset.status(), "data.train"));
  return std::make_unique<DatasetBatchSource>(*std::move(dataset));
}

absl::StatusOr<std::unique_ptr<DatasetBatchSource>> OpenValidationData(Env* env,
                                                                       const v1::JobSpec& spec) {
  absl::StatusOr<std::unique_ptr<GptDataset>> dataset =
      GptDataset::Open(env, ValidationDataOptions(spec));
  if (!dataset.ok()) return NotTheCheckpoint(Annotate(dataset.status(), HeldOutKey(spec)));
  return std::make_unique<DatasetBatchSource>(*std::move(dataset));
}

absl::Status CheckTrainingData(Env* env, const v1::JobSpec& spec) {
  MT_RETURN_IF_ERROR(
      NotTheCheckpoint(Annotate(CheckTrainingData(env, TrainingDataOptions(spec)), "data.train")));
  if (spec.training().evaluation().every_steps() <= 0) return absl::OkStatus();
  return NotTheCheckpoint(
      Annotate(CheckTrainingData(env, ValidationDataOptions(spec)), HeldOutKey(spec)));
}

}  // namespace mt
