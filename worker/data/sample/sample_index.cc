#include "worker/data/sample/sample_index.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace mt {
namespace {

constexpr int64_t kMaxDocuments = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxSamples = (int64_t{1} << 32) - 2;

void AppendEpochs(const SequenceRange& range, int64_t num_epochs, NumpyRandomState& random,
                  std::vector<int32_t>* out) {
  const size_t begin = out->size();
  for (int64_t epoch = 0; epoch < num_epochs; ++epoch) {
    for (int64_t sequence = range.begin; sequence < range.end; ++sequence) {
      out->push_back(static_cast<int32_t>(sequence));
    }
  }
  random.Shuffle(std::span<int32_t>(*out).subspan(begin));
}

}  // namespace

uint64_t NumpyRandomState::Interval(uint64_t max) {
  if (max == 0) return 0;
  uint64_t mask = max;
  for (int shift = 1; shift < 64; shift *= 2) mask |= mask >> shift;
  while (true) {
    uint64_t value = Next32();
    if (max > std::numeric_limits<uint32_t>::max()) value = value << 32 | Next32();
    value &= mask;
    if (value <= max) return value;
  }
}

absl::StatusOr<std::vector<SequenceRange>> SplitSequences(absl::string_view split,
                                                          int64_t num_sequences) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("data.split: \"", split, "\" ", what,
                                                   "; write up to three shares, e.g. 969,30,1"));
  };
  std::vector<double> shares;
  for (absl::string_view part : absl::StrSplit(split, ',')) {
    double share = 0;
    if (!absl::SimpleAtod(part, &share) || !(share >= 0) || std::isinf(share)) {
      return error(absl::StrCat("has \"", part, "\", which is not a share"));
    }
    shares.push_back(share);
  }
  if (shares.size() > 3) return error("has more than three shares");
  shares.resize(3, 0.0);
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  if (!(sum > 0) || std::isinf(sum)) return error("has no share above zero");
  std::vector<SequenceRange> ranges;
  double cumulative = 0;
  int64_t begin = 0;
  for (const double share : shares) {
    cumulative += share / sum;
    // nearbyint rounds half to even, as Python's round does. Rounding may carry the last sum
    // past 1.
    const int64_t end = std::min(
        num_sequences,
        static_cast<int64_t>(std::nearbyint(cumulative * static_cast<double>(num_sequences))));
    ranges.push_back({begin, end});
    begin = end;
  }
  return ranges;
}

absl::StatusOr<SampleIndex> BuildSampleIndex(const std::function<int32_t(int64_t)>& length,
                                             const SampleIndexOptions& options) {
  const SequenceRange& range = options.sequences;
  const int64_t sequence_length = options.sequence_length;
  if (sequence_length < 1 || sequence_length > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.sequence_length: ", sequence_length, " is not positive"));
  }
  if (options.num_samples < 0 || options.num_samples > kMaxSamples) {
    return absl::InvalidArgumentError(absl::StrCat("steps * global_batch: ", options.num_samples,
                                                   " samples; at most ", kMaxSamples,
                                                   " are possible"));
  }
  int64_t epoch_tokens = 0;
  for (int64_t sequence = range.begin; sequence < range.end; ++sequence)
    epoch_tokens += length(sequence);
  if (epoch_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the training share of the data is empty (sequences ", range.begin, " to ",
                     range.end, "); change data.split or add text"));
  }
  // The smallest number of epochs with epochs * epoch_tokens >= samples * T + 1. The factors are
  // below 2^32 and 2^31.
  const int64_t num_epochs = options.num_samples * sequence_length / epoch_tokens + 1;
  const int64_t epoch_documents = range.end - range.begin;
  if (num_epochs > kMaxDocuments / epoch_documents) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.num_samples, " samples of ", sequence_length, " tokens repeat the ",
                     epoch_tokens, " tokens of data ", num_epochs,
                     " times, more than can be ordered; add text or train fewer steps"));
  }

  SampleIndex index;
  index.num_epochs = num_epochs;
  const int64_t num_samples = (num_epochs * epoch_tokens - 1) / sequence_length;
  if (num_samples < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data has ", epoch_tokens, " tokens, too few for one sample of ",
                     sequence_length, " + 1; add text or lower data.sequence_length"));
  }
  if (num_samples > kMaxSamples) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data makes ", num_samples, " samples; at most ", kMaxSamples,
                     " can be ordered; use a longer data.sequence_length or less data"));
  }
  const int64_t samples_without_final = ((num_epochs - 1) * epoch_tokens - 1) / sequence_length;
  if (num_epochs > 1) {
    const int64_t final_samples = options.num_samples - samples_without_final;
    const int64_t samples_per_epoch = (epoch_tokens - 1) / sequence_length;
    index.separate_final_epoch =
        final_samples < static_cast<int64_t>(0.80 * static_cast<double>(samples_per_epoch));
  }

  NumpyRandomState random(options.seed);
  index.document_index.reserve(num_epochs * epoch_documents);
  if (index.separate_final_epoch) {
    AppendEpochs(range, num_epochs - 1, random, &index.document_index);
    AppendEpochs(range, 1, random, &index.document_index);
  } else {
    AppendEpochs(range, num_epochs, random, &index.document_index);
  }

  // The walk: sample j+1 starts `sequence_length` tokens after sample j, and needs one more token
  // to exist there, so it starts within a document, possibly on its last token. num_samples *
  // sequence_length + 1 tokens exist, so the walk never leaves document_index.
  index.sample_index.reserve(num_samples + 1);
  SampleStart at;
  index.sample_index.push_back(at);
  for (int64_t sample = 0; sample < num_samples; ++sample) {
    int64_t remaining = sequence_length + 1;
    while (true) {
      const int64_t available = length(index.document_index[at.position]) - at.offset;
      remaining -= available;
      if (remaining <= 0) {
        at.offset += static_cast<int32_t>(remaining + available - 1);
        break;
      }
      ++at.position;
      at.offset = 0;
    }
    index.sample_index.push_back(at);
  }

  index.shuffle_index.resize(num_samples);
  std::iota(index.shuffle_index.begin(), index.shuffle_index.end(), 0u);
  const std::span<uint32_t> order(index.shuffle_index);
  if (index.separate_final_epoch) {
    random.Shuffle(order.first(samples_without_final));
    random.Shuffle(order.subspan(samples_without_final));
  } else {
    random.Shuffle(order);
  }
  return index;
}

}  // namespace mt
