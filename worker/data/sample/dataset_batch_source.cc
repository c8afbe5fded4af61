#include "worker/data/sample/dataset_batch_source.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <vector>

#include "common/hash.h"
#include "common/spec/batch_schedule.h"
#include "worker/data/sample/fim.h"
#include "worker/data/sample/index_cache.h"
#include "worker/data/sample/prefetch.h"

namespace mt {
namespace {

// DATA_LOSS from a rank means that the checkpoint it started from is broken, and the one before is tried. Broken training
// data is not that: another checkpoint would not help.
absl::Status NotTheCheckpoint(const absl::Status& status) {
  return absl::IsDataLoss(status) ? absl::FailedPreconditionError(status.message()) : status;
}

// As a person wrote it, for messages.
std::string KeyOf(const v1::JobSpec& spec, DataShare share) {
  switch (share) {
    case DataShare::kTrain:
      return "data.train";
    case DataShare::kValidation:
      return spec.data().validation().empty() ? "data.split, the second share" : "data.validation";
    case DataShare::kTest:
      return spec.data().test().empty() ? "data.split, the third share" : "data.test";
  }
  return "data";
}

class DatasetBatchSource : public BatchSource {
 public:
  DatasetBatchSource(const v1::JobSpec& spec, DataShare share,
                     std::unique_ptr<BlendedDataset> dataset)
      : dataset_(std::move(dataset)),
        sequence_length_(static_cast<size_t>(spec.data().sequence_length())),
        eod_(spec.data().has_eod() ? spec.data().eod() : -1),
        mask_eod_(spec.data().mask_eod()),
        packed_(spec.data().packing() == v1::DataSpec::PACKING_DOCUMENTS),
        tokens_(sequence_length_ + 1),
        permuted_(sequence_length_ + 1),
        has_loss_(sequence_length_ + 1),
        document_start_(sequence_length_ + 1) {
    const v1::FimSpec& fim = spec.data().fim();
    if (share != DataShare::kTrain || fim.rate() <= 0) return;
    fim_ = FimOptions{.rate = fim.rate(),
                      .spm_rate = fim.has_spm_rate() ? fim.spm_rate() : 0.5,
                      .prefix = fim.prefix(),
                      .middle = fim.middle(),
                      .suffix = fim.suffix(),
                      .eod = eod_,
                      .seed = static_cast<uint64_t>(
                          spec.data().has_seed() ? spec.data().seed() : spec.training().seed())};
  }

  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
    const size_t samples = sample_ids.size(), length = sequence_length_;
    MT_RETURN_IF_ERROR(CheckSpan("tokens", batch.tokens.size(), samples * (length + 1)));
    MT_RETURN_IF_ERROR(CheckSpan("loss_mask", batch.loss_mask.size(), samples * length));
    MT_RETURN_IF_ERROR(CheckSpan("document_start", batch.document_start.size(), samples * length));
    for (size_t i = 0; i < samples; ++i) {
      MT_RETURN_IF_ERROR(NotTheCheckpoint(Load(sample_ids[i])));
      if (!batch.tokens.empty())
        std::copy(tokens_.begin(), tokens_.end(), &batch.tokens[i * (length + 1)]);
      if (!batch.loss_mask.empty()) FillLossMask(batch.loss_mask.subspan(i * length, length));
      if (!batch.document_start.empty())
        std::copy_n(document_start_.begin(), length, &batch.document_start[i * length]);
    }
    return absl::OkStatus();
  }
  bool masks_loss() const override { return mask_eod_ || dataset_->masks_loss(); }

 private:
  static absl::Status CheckSpan(const char* what, size_t size, size_t expected) {
    if (size == 0 || size == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("batch.", what, " has ", size, " places, not ", expected));
  }
  // The sample into tokens_, has_loss_ and document_start_.
  absl::Status Load(int64_t sample) {
    MT_RETURN_IF_ERROR(dataset_->Read(
        sample, {.tokens = tokens_, .has_loss = has_loss_, .document_start = document_start_}));
    if (fim_.has_value() &&
        !dataset_->dataset(dataset_->OriginOf(sample).dataset).has_loss_file()) {
      PermuteFim(*fim_, sample, tokens_, permuted_);
      tokens_.swap(permuted_);
    }
    if (packed_) return absl::OkStatus();
    int32_t start = 0;
    for (size_t t = 0; t < sequence_length_; ++t) {
      document_start_[t] = start;
      if (tokens_[t] == eod_) start = static_cast<int32_t>(t) + 1;
    }
    return absl::OkStatus();
  }
  void FillLossMask(std::span<uint8_t> mask) const {
    for (size_t t = 0; t < mask.size(); ++t)
      mask[t] = mask_eod_ && tokens_[t] == eod_ ? 0 : has_loss_[t + 1];
  }

  const std::unique_ptr<BlendedDataset> dataset_;
  const size_t sequence_length_;
  const int32_t eod_;  // -1: none, which no token is
  const bool mask_eod_;
  const bool packed_;
  std::optional<FimOptions> fim_;
  // Of one sample; all (T + 1).
  std::vector<int32_t> tokens_, permuted_;
  std::vector<uint8_t> has_loss_;
  std::vector<int32_t> document_start_;
};

// runtime.log_samples: what was asked for, in the order it was.
class LoggingSource : public BatchSource {
 public:
  LoggingSource(std::unique_ptr<BatchSource> source, const BlendedDataset* dataset)
      : source_(std::move(source)), dataset_(dataset) {}
  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
    MT_RETURN_IF_ERROR(source_->Fetch(sample_ids, batch));
    if (batch.tokens.empty()) return absl::OkStatus();
    const size_t tokens = batch.tokens.size() / sample_ids.size();
    for (size_t i = 0; i < sample_ids.size(); ++i) {
      const BlendedDataset::Origin origin = dataset_->OriginOf(sample_ids[i]);
      const std::string digest = Xxh3Hex({reinterpret_cast<const char*>(&batch.tokens[i * tokens]),
                                          tokens * sizeof(batch.tokens[0])});
      std::printf("sample %lld: dataset %zu, sample %lld, tokens %s\n",
                  static_cast<long long>(sample_ids[i]), origin.dataset,
                  static_cast<long long>(origin.sample), digest.c_str());
    }
    std::fflush(stdout);
    return absl::OkStatus();
  }
  bool masks_loss() const override { return source_->masks_loss(); }

 private:
  const std::unique_ptr<BatchSource> source_;
  const BlendedDataset* const dataset_;  // source_'s
};

// Batches that a reader is ahead, in at most 32 MiB: `stride` samples are more than one of them has.
size_t PrefetchDepth(const v1::JobSpec& spec, int64_t stride) {
  constexpr int64_t kBytes = 32 << 20, kBytesPerToken = 9;
  const int64_t batch = stride * (spec.data().sequence_length() + 1) * kBytesPerToken;
  return static_cast<size_t>(std::clamp<int64_t>(kBytes / batch, 2, 64));
}

absl::Status CheckSpec(const v1::JobSpec& spec) {
  if (spec.data().fim().rate() > 0 && spec.data().packing() == v1::DataSpec::PACKING_DOCUMENTS) {
    return absl::InvalidArgumentError(
        "data.fim makes documents longer than the room that data.packing: documents gave them; use "
        "packing: stream with it");
  }
  return absl::OkStatus();
}

}  // namespace

BlendOptions BlendOptionsOf(const v1::JobSpec& spec, DataShare share) {
  const v1::DataSpec& data = spec.data();
  const v1::TrainingSpec& training = spec.training();
  BlendOptions options;
  options.share_of_one_list = data.validation().empty() && data.test().empty();
  const auto& own = share == DataShare::kTest ? data.test() : data.validation();
  const bool of_train = share == DataShare::kTrain || own.empty();
  for (const v1::DataSource& source : of_train ? data.train() : own)
    options.sources.push_back({.prefix = source.prefix(), .weight = source.weight()});
  GptDatasetOptions& dataset = options.dataset;
  if (of_train) {
    dataset.share = static_cast<int>(share);
    if (!data.split().empty()) dataset.split = data.split();
  }
  dataset.sequence_length = data.sequence_length();
  dataset.num_samples = share == DataShare::kTrain
                            ? SamplesOfSteps(training, training.steps())
                            : training.evaluation().batches() * training.global_batch();
  dataset.seed = data.has_seed() ? data.seed() : training.seed();
  dataset.vocab_size = spec.model().vocab();
  dataset.pack_documents = data.packing() == v1::DataSpec::PACKING_DOCUMENTS;
  dataset.padding = std::max(data.has_eod() ? data.eod() : 0, 0);
  return options;
}

absl::StatusOr<std::unique_ptr<BatchSource>> OpenData(Env* env, const v1::JobSpec& spec,
                                                      DataShare share,
                                                      const OpenDataOptions& options) {
  MT_RETURN_IF_ERROR(CheckSpec(spec));
  std::optional<IndexCache> cache;
  if (!options.index_cache.empty()) cache.emplace(env, options.index_cache);
  absl::StatusOr<std::unique_ptr<BlendedDataset>> dataset =
      BlendedDataset::Open(env, BlendOptionsOf(spec, share), cache.has_value() ? &*cache : nullptr);
  if (!dataset.ok()) return NotTheCheckpoint(Annotate(dataset.status(), KeyOf(spec, share)));
  const BlendedDataset* const blended = dataset->get();
  std::unique_ptr<BatchSource> source =
      std::make_unique<DatasetBatchSource>(spec, share, *std::move(dataset));
  if (options.prefetch_stride > 0) {
    source = std::make_unique<PrefetchingSource>(std::move(source), options.prefetch_stride,
                                                 PrefetchDepth(spec, options.prefetch_stride));
  }
  if (spec.runtime().log_samples() && share == DataShare::kTrain)
    source = std::make_unique<LoggingSource>(std::move(source), blended);
  return source;
}

absl::Status CheckTrainingData(Env* env, const v1::JobSpec& spec) {
  MT_RETURN_IF_ERROR(CheckSpec(spec));
  for (const DataShare share : {DataShare::kTrain, DataShare::kValidation}) {
    if (share == DataShare::kValidation && spec.training().evaluation().every_steps() <= 0) break;
    MT_RETURN_IF_ERROR(NotTheCheckpoint(
        Annotate(BlendedDataset::Check(env, BlendOptionsOf(spec, share)), KeyOf(spec, share))));
  }
  return absl::OkStatus();
}

}  // namespace mt
