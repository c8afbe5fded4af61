#include "worker/data/sample/gpt_dataset.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "worker/data/sample/index_cache.h"

namespace mt {
namespace {

absl::Status CheckVocabulary(std::span<const int32_t> tokens, int64_t vocab_size,
                             const std::string& prefix, int64_t sequence) {
  if (vocab_size <= 0 || tokens.empty()) return absl::OkStatus();
  const int32_t largest = *std::max_element(tokens.begin(), tokens.end());
  if (largest < vocab_size) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(prefix, ".bin: sequence ", sequence, " has token id ",
                                          largest, ", but model.vocab is ", vocab_size,
                                          "; use the vocabulary that the data was built with"));
}

// The data, and what is asked for of its order.
struct Source {
  std::unique_ptr<IndexedDataset> data;
  SampleIndexOptions options;
  int64_t tokens = 0;  // of the share
};

absl::StatusOr<Source> OpenSource(Env* env, const GptDatasetOptions& options) {
  if (options.seed < 0 || options.seed > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.seed: ", options.seed, " is not in 0 .. 4294967295"));
  }
  Source source;
  MT_ASSIGN_OR_RETURN(source.data, IndexedDataset::Open(env, options.prefix));
  const IndexedDataset& data = *source.data;
  if (data.num_sequences() > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.prefix, ".idx: ", data.num_sequences(),
                     " sequences; the sample order can hold at most 2147483647"));
  }
  MT_ASSIGN_OR_RETURN(const std::vector<SequenceRange> shares,
                      SplitSequences(options.split, data.num_sequences()));
  const SequenceRange& share = shares[static_cast<size_t>(options.share)];
  const auto first_token = [&](int64_t sequence) {
    return sequence == data.num_sequences() ? data.num_tokens() : data.TokenOffset(sequence);
  };
  source.tokens = first_token(share.end) - first_token(share.begin);
  source.options = {.sequences = share,
                    .sequence_length = options.sequence_length,
                    .num_samples = options.num_samples,
                    .seed = static_cast<uint32_t>(options.seed),
                    .pack_documents = options.pack_documents};
  return source;
}

// Null: the dataset has none.
absl::StatusOr<std::unique_ptr<LossFile>> OpenLosses(Env* env, const std::string& prefix,
                                                     const IndexedDataset& data) {
  absl::StatusOr<std::unique_ptr<LossFile>> losses = LossFile::Open(env, prefix, data.num_tokens());
  if (absl::IsNotFound(losses.status())) return nullptr;
  return losses;
}

SequenceLengths LengthsOf(const IndexedDataset& data) {
  return {data.lengths(), data.num_sequences()};
}

absl::Status CheckSize(absl::string_view what, size_t size, int64_t sequence_length) {
  if (static_cast<int64_t>(size) == sequence_length + 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a sample has ", sequence_length + 1, " ", what, ", not ", size));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GptDataset>> GptDataset::Open(Env* env,
                                                             const GptDatasetOptions& options,
                                                             const IndexCache* cache) {
  MT_ASSIGN_OR_RETURN(Source source, OpenSource(env, options));
  const IndexedDataset& data = *source.data;
  absl::StatusOr<SampleIndex> index = cache == nullptr
                                          ? BuildSampleIndex(LengthsOf(data), source.options)
                                          : cache->SampleIndexOf(LengthsOf(data), source.options);
  if (!index.ok()) return Annotate(index.status(), options.prefix);
  MT_ASSIGN_OR_RETURN(std::unique_ptr<LossFile> losses, OpenLosses(env, options.prefix, data));
  auto dataset = std::unique_ptr<GptDataset>(
      new GptDataset(options, std::move(source.data), *std::move(index)));
  dataset->losses_ = std::move(losses);
  return dataset;
}

absl::StatusOr<int64_t> GptDataset::CountSamples(Env* env, const GptDatasetOptions& options) {
  MT_ASSIGN_OR_RETURN(const Source source, OpenSource(env, options));
  if (options.pack_documents) {
    absl::StatusOr<SampleIndex> index = BuildSampleIndex(LengthsOf(*source.data), source.options);
    if (!index.ok()) return Annotate(index.status(), options.prefix);
    return index->num_samples();
  }
  absl::StatusOr<SampleIndexPlan> plan = PlanSampleIndex(source.tokens, source.options);
  if (!plan.ok()) return Annotate(plan.status(), options.prefix);
  return plan->num_samples;
}

absl::Status GptDataset::Check(Env* env, const GptDatasetOptions& options,
                               int64_t max_tokens_read) {
  if (!options.pack_documents) MT_RETURN_IF_ERROR(CountSamples(env, options).status());
  MT_ASSIGN_OR_RETURN(const Source source, OpenSource(env, options));
  if (source.tokens == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.prefix, ": the share of the data is empty; change data.split or add text"));
  }
  const IndexedDataset& data = *source.data;
  MT_RETURN_IF_ERROR(OpenLosses(env, options.prefix, data).status());
  std::vector<int32_t> tokens;
  int64_t left = max_tokens_read;
  for (int64_t sequence = 0; sequence < data.num_sequences() && left > 0; ++sequence) {
    constexpr int64_t kPiece = 1 << 16;
    for (int64_t offset = 0; offset < data.Length(sequence) && left > 0; offset += kPiece) {
      tokens.resize(static_cast<size_t>(std::min({kPiece, data.Length(sequence) - offset, left})));
      MT_RETURN_IF_ERROR(data.Read(sequence, offset, tokens));
      MT_RETURN_IF_ERROR(CheckVocabulary(tokens, options.vocab_size, options.prefix, sequence));
      left -= static_cast<int64_t>(tokens.size());
    }
  }
  return absl::OkStatus();
}

absl::Status GptDataset::ReadPart(int64_t sequence, int64_t offset, size_t at, size_t count,
                                  const Sample& into) const {
  const std::span<int32_t> tokens = into.tokens.subspan(at, count);
  MT_RETURN_IF_ERROR(data_->Read(sequence, offset, tokens));
  MT_RETURN_IF_ERROR(CheckVocabulary(tokens, options_.vocab_size, options_.prefix, sequence));
  const std::span<uint8_t> has_loss = into.has_loss.subspan(at, count);
  if (losses_ != nullptr) return losses_->Read(data_->TokenOffset(sequence) + offset, has_loss);
  std::fill(has_loss.begin(), has_loss.end(), 1);
  return absl::OkStatus();
}

absl::Status GptDataset::Read(int64_t sample, const Sample& into) const {
  if (sample < 0 || sample >= num_samples()) {
    return absl::OutOfRangeError(
        absl::StrCat(options_.prefix, ": sample ", sample, " of ", num_samples(),
                     " (were steps or global_batch raised after the start?)"));
  }
  MT_RETURN_IF_ERROR(CheckSize("tokens", into.tokens.size(), options_.sequence_length));
  MT_RETURN_IF_ERROR(CheckSize("losses", into.has_loss.size(), options_.sequence_length));
  const auto walked = static_cast<size_t>(index_.InWalk(sample));
  SampleStart at = index_.sample_index[walked];
  if (options_.pack_documents) return ReadPacked(at, index_.sample_index[walked + 1], into);
  for (size_t done = 0; done < into.tokens.size(); ++at.position, at.offset = 0) {
    const int64_t sequence = index_.document_index[at.position];
    const size_t count = std::min(into.tokens.size() - done,
                                  static_cast<size_t>(data_->Length(sequence) - at.offset));
    MT_RETURN_IF_ERROR(ReadPart(sequence, at.offset, done, count, into));
    done += count;
  }
  return absl::OkStatus();
}

// Documents from `at` to `end`, where the next sample begins: one piece of a long document, or all that is left of one and whole
// ones behind it. The first token of each labels the last of another: it has no loss. Padding is a document of its own.
absl::Status GptDataset::ReadPacked(SampleStart at, SampleStart end, const Sample& into) const {
  MT_RETURN_IF_ERROR(
      CheckSize("document starts", into.document_start.size(), options_.sequence_length));
  size_t done = 0;
  const auto begin_document = [&](size_t count) {
    const std::span<int32_t> starts = into.document_start.subspan(done, count);
    std::fill(starts.begin(), starts.end(), static_cast<int32_t>(done));
  };
  do {
    const int64_t sequence = index_.document_index[at.position];
    const size_t count = std::min(into.tokens.size() - done,
                                  static_cast<size_t>(data_->Length(sequence) - at.offset));
    MT_RETURN_IF_ERROR(ReadPart(sequence, at.offset, done, count, into));
    into.has_loss[done] = 0;
    begin_document(count);
    done += count;
    at = {.position = at.position + 1};
  } while (at.position < end.position && done < into.tokens.size());
  const size_t rest = into.tokens.size() - done;
  if (rest == 0) return absl::OkStatus();
  begin_document(rest);
  const std::span<int32_t> tokens = into.tokens.subspan(done);
  const std::span<uint8_t> losses = into.has_loss.subspan(done);
  std::fill(tokens.begin(), tokens.end(), options_.padding);
  std::fill(losses.begin(), losses.end(), 0);
  return absl::OkStatus();
}

}  // namespace mt
