#include "worker/data/sample/sample_index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/hash.h"

namespace mt {
namespace {

constexpr int64_t kMaxDocuments = std::numeric_limits<uint32_t>::max();
constexpr int64_t kMaxSamples = (int64_t{1} << 32) - 2;

absl::Status CheckSizes(const SampleIndexOptions& options) {
  if (options.sequence_length < 1 ||
      options.sequence_length >= std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data.sequence_length: ", options.sequence_length, " is not in 1 .. 2147483646"));
  }
  if (options.num_samples < 0 || options.num_samples > kMaxSamples) {
    return absl::InvalidArgumentError(absl::StrCat("steps * global_batch: ", options.num_samples,
                                                   " samples; at most ", kMaxSamples,
                                                   " are possible"));
  }
  return absl::OkStatus();
}

absl::Status Empty(const SequenceRange& range) {
  return absl::InvalidArgumentError(absl::StrCat("the share of the data is empty (sequences ",
                                                 range.begin, " to ", range.end,
                                                 "); change data.split or add text"));
}

absl::Status TooOften(const SampleIndexOptions& options, int64_t num_epochs) {
  return absl::InvalidArgumentError(absl::StrCat(
      options.num_samples, " samples of ", options.sequence_length, " tokens repeat the ",
      options.sequences.end - options.sequences.begin, " documents of data ", num_epochs,
      " times, more than can be ordered; add text or train fewer steps"));
}

// Runs work(0), ..., work(count - 1), each on a thread of its own.
template <typename Work>
void InParallel(int count, const Work& work) {
  std::vector<std::thread> threads;
  for (int i = 1; i < count; ++i) threads.emplace_back([&work, i] { work(i); });
  work(0);
  for (std::thread& thread : threads) thread.join();
}

int ThreadsFor(int asked, int64_t items) {
  constexpr int64_t kItemsPerThread = 1 << 16;  // fewer are not worth a thread
  const int64_t most = asked > 0 ? asked : std::max(1u, std::thread::hardware_concurrency());
  return static_cast<int>(std::clamp<int64_t>(items / kItemsPerThread, 1, most));
}

void FillEpochs(const SequenceRange& range, std::span<int32_t> documents) {
  const size_t epoch = static_cast<size_t>(range.end - range.begin);
  for (size_t begin = 0; begin < documents.size(); begin += epoch) {
    std::iota(documents.begin() + begin, documents.begin() + begin + epoch,
              static_cast<int32_t>(range.begin));
  }
}

// Packed documents that begin at `at`: where the next sample does. `lengths_at(p)`: of the document at position p.
template <typename LengthAt>
SampleStart AfterPacked(SampleStart at, int64_t end, int64_t sequence_length,
                        const LengthAt& length_at) {
  const int64_t first = length_at(at.position) - at.offset;
  if (first > sequence_length + 1) {
    at.offset += static_cast<int32_t>(sequence_length);
    return at;
  }
  int64_t room = sequence_length + 1 - first;
  for (++at.position, at.offset = 0; at.position < end; ++at.position) {
    const int64_t length = length_at(at.position);
    if (length > room) break;
    room -= length;
  }
  return at;
}

absl::StatusOr<SampleIndex> PackDocuments(const SequenceLengths& lengths,
                                          const SampleIndexOptions& options) {
  const SequenceRange& range = options.sequences;
  const int64_t wanted = std::max<int64_t>(options.num_samples, 1);
  NumpyRandomState random(options.seed);
  std::vector<int32_t> documents;
  std::vector<SampleStart> starts;
  const auto length_at = [&](int64_t position) -> int64_t { return lengths[documents[position]]; };
  int64_t epoch_documents = 0;  // those with tokens
  for (int64_t i = range.begin; i < range.end; ++i) epoch_documents += lengths[i] > 0;
  if (epoch_documents == 0) return Empty(range);
  for (int64_t epoch = 1; static_cast<int64_t>(starts.size()) < wanted; ++epoch) {
    if (epoch > kMaxDocuments / epoch_documents) return TooOften(options, epoch);
    const size_t begin = documents.size();
    for (int64_t i = range.begin; i < range.end; ++i) {
      if (lengths[i] > 0) documents.push_back(static_cast<int32_t>(i));
    }
    random.Shuffle(std::span<int32_t>(documents).subspan(begin));
    const auto end = static_cast<int64_t>(documents.size());
    SampleStart at{.position = static_cast<uint32_t>(begin)};
    while (at.position < end) {
      if (static_cast<int64_t>(starts.size()) == kMaxSamples) return TooOften(options, epoch);
      starts.push_back(at);
      at = AfterPacked(at, end, options.sequence_length, length_at);
    }
  }
  starts.push_back({.position = static_cast<uint32_t>(documents.size())});
  MT_ASSIGN_OR_RETURN(IndexArrays arrays,
                      IndexArrays::Allocate({4 * documents.size(), 8 * starts.size(), 0}));
  std::copy(documents.begin(), documents.end(), arrays.array<int32_t>(0).begin());
  std::copy(starts.begin(), starts.end(), arrays.array<SampleStart>(1).begin());
  return SampleIndex(std::move(arrays));
}

}  // namespace

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

std::string SequenceLengths::Digest() const {
  return Xxh3Hex({data_, 4 * static_cast<size_t>(count_)});
}

absl::StatusOr<SampleIndexPlan> PlanSampleIndex(int64_t epoch_tokens,
                                                const SampleIndexOptions& options) {
  MT_RETURN_IF_ERROR(CheckSizes(options));
  const int64_t sequence_length = options.sequence_length;
  if (epoch_tokens < 1) return Empty(options.sequences);
  SampleIndexPlan plan;
  // The smallest number of epochs with epochs * epoch_tokens >= samples * T + 1. The factors are
  // below 2^32 and 2^31.
  plan.num_epochs = options.num_samples * sequence_length / epoch_tokens + 1;
  const int64_t epoch_documents = options.sequences.end - options.sequences.begin;
  if (plan.num_epochs > kMaxDocuments / epoch_documents) return TooOften(options, plan.num_epochs);
  int64_t tokens = 0;
  if (__builtin_mul_overflow(plan.num_epochs, epoch_tokens, &tokens))
    return TooOften(options, plan.num_epochs);
  plan.num_samples = (tokens - 1) / sequence_length;
  if (plan.num_samples < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data has ", epoch_tokens, " tokens, too few for one sample of ",
                     sequence_length, " + 1; add text or lower data.sequence_length"));
  }
  if (plan.num_samples > kMaxSamples) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data makes ", plan.num_samples, " samples; at most ", kMaxSamples,
                     " can be ordered; use a longer data.sequence_length or less data"));
  }
  plan.samples_without_final_epoch =
      plan.num_epochs > 1 ? (tokens - epoch_tokens - 1) / sequence_length : 0;
  if (plan.num_epochs > 1) {
    const int64_t final_samples = options.num_samples - plan.samples_without_final_epoch;
    const int64_t samples_per_epoch = (epoch_tokens - 1) / sequence_length;
    plan.separate_final_epoch =
        final_samples < static_cast<int64_t>(0.80 * static_cast<double>(samples_per_epoch));
  }
  return plan;
}

SampleIndex::SampleIndex(IndexArrays owned) : arrays(std::move(owned)) {
  document_index = arrays.array<const int32_t>(0);
  sample_index = arrays.array<const SampleStart>(1);
  shuffle_index = arrays.array<const uint32_t>(2);
}

// Sample j starts at token j T of the stream, so that any part of the stream can be walked alone once it is known how many tokens
// come before it. Lengths are looked up in shuffled order, which is what the walk waits for: they are fetched ahead, and kept.
void WalkSamples(const SequenceLengths& lengths, std::span<const int32_t> document_index,
                 int64_t sequence_length, int threads, std::span<SampleStart> starts) {
  const size_t documents = document_index.size();
  const int parts = ThreadsFor(threads, static_cast<int64_t>(documents));
  const auto begin_of = [&](int part) { return documents * static_cast<size_t>(part) / parts; };
  std::vector<int32_t> in_order(documents);
  std::vector<int64_t> tokens(static_cast<size_t>(parts) + 1);
  InParallel(parts, [&](int part) {
    constexpr size_t kAhead = 32;
    int64_t sum = 0;
    const size_t end = begin_of(part + 1);
    for (size_t i = begin_of(part); i < end; ++i) {
      if (i + kAhead < documents) lengths.Prefetch(document_index[i + kAhead]);
      in_order[i] = lengths[document_index[i]];
      sum += in_order[i];
    }
    tokens[static_cast<size_t>(part) + 1] = sum;
  });
  std::partial_sum(tokens.begin(), tokens.end(), tokens.begin());
  // The first sample starts at the first document even if that is empty; every other in a document with a token left, possibly on
  // its last one.
  starts[0] = {};
  InParallel(parts, [&](int part) {
    const int64_t before = tokens[static_cast<size_t>(part)];
    auto sample = static_cast<size_t>((before + sequence_length - 1) / sequence_length);
    // From the start of document i to that of the next sample.
    int64_t distance = static_cast<int64_t>(sample) * sequence_length - before;
    if (sample == 0) ++sample, distance += sequence_length;
    const size_t end = begin_of(part + 1);
    for (size_t i = begin_of(part); i < end && sample < starts.size(); ++i) {
      for (; distance < in_order[i] && sample < starts.size(); distance += sequence_length) {
        starts[sample++] = {static_cast<uint32_t>(i), static_cast<int32_t>(distance)};
      }
      distance -= in_order[i];
    }
  });
}

absl::StatusOr<SampleIndex> BuildSampleIndex(const SequenceLengths& lengths,
                                             const SampleIndexOptions& options) {
  MT_RETURN_IF_ERROR(CheckSizes(options));
  if (options.pack_documents) return PackDocuments(lengths, options);
  const SequenceRange& range = options.sequences;
  int64_t epoch_tokens = 0;
  for (int64_t i = range.begin; i < range.end; ++i) epoch_tokens += lengths[i];
  MT_ASSIGN_OR_RETURN(const SampleIndexPlan plan, PlanSampleIndex(epoch_tokens, options));
  const auto epoch_documents = static_cast<size_t>(range.end - range.begin);
  const auto num_samples = static_cast<size_t>(plan.num_samples);
  const size_t num_documents = static_cast<size_t>(plan.num_epochs) * epoch_documents;
  MT_ASSIGN_OR_RETURN(
      IndexArrays arrays,
      IndexArrays::Allocate({4 * num_documents, 8 * (num_samples + 1), 4 * num_samples}));
  const std::span<int32_t> documents = arrays.array<int32_t>(0);
  const std::span<uint32_t> order = arrays.array<uint32_t>(2);

  // One generator makes both shuffles, the documents' first. The walk needs the documents only.
  NumpyRandomState random(options.seed);
  FillEpochs(range, documents);
  const size_t together =
      plan.separate_final_epoch ? num_documents - epoch_documents : num_documents;
  random.Shuffle(documents.first(together));
  random.Shuffle(documents.subspan(together));
  const auto shuffle_samples = [&] {
    std::iota(order.begin(), order.end(), 0u);
    const auto first = plan.separate_final_epoch
                           ? static_cast<size_t>(plan.samples_without_final_epoch)
                           : num_samples;
    random.Shuffle(order.first(first));
    random.Shuffle(order.subspan(first));
  };
  const auto walk = [&](int threads) {
    WalkSamples(lengths, documents, options.sequence_length, threads, arrays.array<SampleStart>(1));
  };
  const int threads = ThreadsFor(options.threads, static_cast<int64_t>(num_documents));
  if (threads > 1) {
    std::thread shuffle(shuffle_samples);
    walk(threads - 1);
    shuffle.join();
  } else {
    walk(1);
    shuffle_samples();
  }
  return SampleIndex(std::move(arrays));
}

}  // namespace mt
