#include "worker/data/sample/gpt_dataset.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace mt {
namespace {

absl::Status CheckVocabulary(std::span<const int32_t> tokens, int64_t vocab_size,
                             const std::string& prefix, absl::string_view where) {
  if (vocab_size <= 0 || tokens.empty()) return absl::OkStatus();
  const int32_t largest = *std::max_element(tokens.begin(), tokens.end());
  if (largest < vocab_size) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(prefix, ".bin: ", where, " has token id ", largest,
                                          ", but model.vocab is ", vocab_size,
                                          "; use the vocabulary that the data was built with"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GptDataset>> GptDataset::Open(Env* env,
                                                             const GptDatasetOptions& options) {
  if (options.seed < 0 || options.seed > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.seed: ", options.seed, " is not in 0 .. 4294967295"));
  }
  auto dataset = std::unique_ptr<GptDataset>(new GptDataset());
  dataset->options_ = options;
  MT_ASSIGN_OR_RETURN(dataset->data_, IndexedDataset::Open(env, options.prefix));
  const IndexedDataset& data = *dataset->data_;
  if (data.num_sequences() > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.prefix, ".idx: ", data.num_sequences(),
                     " sequences; the sample order can hold at most 2147483647"));
  }
  MT_ASSIGN_OR_RETURN(const std::vector<SequenceRange> shares,
                      SplitSequences(options.split, data.num_sequences()));
  absl::StatusOr<SampleIndex> index =
      BuildSampleIndex([&data](int64_t sequence) { return data.Length(sequence); },
                       {.sequences = shares[static_cast<size_t>(options.share)],
                        .sequence_length = options.sequence_length,
                        .num_samples = options.num_samples,
                        .seed = static_cast<uint32_t>(options.seed)});
  if (!index.ok()) return Annotate(index.status(), options.prefix);
  dataset->index_ = *std::move(index);
  return dataset;
}

absl::Status GptDataset::Fetch(int64_t sample, std::span<int32_t> tokens) const {
  if (sample < 0 || sample >= num_samples()) {
    return absl::OutOfRangeError(
        absl::StrCat(options_.prefix, ": sample ", sample, " of ", num_samples(),
                     " (were steps or global_batch raised after the start?)"));
  }
  if (static_cast<int64_t>(tokens.size()) != options_.sequence_length + 1) {
    return absl::InvalidArgumentError(absl::StrCat("a sample has ", options_.sequence_length + 1,
                                                   " tokens, not ", tokens.size()));
  }
  SampleStart at = index_.sample_index[index_.shuffle_index[sample]];
  for (size_t done = 0; done < tokens.size(); ++at.position, at.offset = 0) {
    const int64_t sequence = index_.document_index[at.position];
    const size_t count =
        std::min<size_t>(tokens.size() - done, data_->Length(sequence) - at.offset);
    const std::span<int32_t> part = tokens.subspan(done, count);
    MT_RETURN_IF_ERROR(data_->Read(sequence, at.offset, part));
    MT_RETURN_IF_ERROR(CheckVocabulary(part, options_.vocab_size, options_.prefix,
                                       absl::StrCat("sequence ", sequence)));
    done += count;
  }
  return absl::OkStatus();
}

absl::Status CheckTrainingData(Env* env, const GptDatasetOptions& options,
                               int64_t max_tokens_read) {
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<GptDataset> dataset, GptDataset::Open(env, options));
  const IndexedDataset& data = dataset->data();
  std::vector<int32_t> tokens;
  int64_t left = max_tokens_read;
  for (int64_t sequence = 0; sequence < data.num_sequences() && left > 0; ++sequence) {
    constexpr int64_t kPiece = 1 << 16;
    for (int64_t offset = 0; offset < data.Length(sequence) && left > 0; offset += kPiece) {
      tokens.resize(std::min({kPiece, data.Length(sequence) - offset, left}));
      MT_RETURN_IF_ERROR(data.Read(sequence, offset, tokens));
      MT_RETURN_IF_ERROR(CheckVocabulary(tokens, options.vocab_size, options.prefix,
                                         absl::StrCat("sequence ", sequence)));
      left -= static_cast<int64_t>(tokens.size());
    }
  }
  return absl::OkStatus();
}

}  // namespace mt
