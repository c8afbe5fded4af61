// The order of training samples, equal to Megatron-LM's GPTDataset for the same lengths, split,
// sequence length, number of samples and seed. It is a pure function of those, so every rank
// agrees with all others, and a run resumes at any sample knowing one integer.
//
// A sample is T+1 tokens out of the stream that the documents make in document_index's order;
// neighbouring samples share one token (the last label of one is the first input of the next).
// Three arrays, each a permutation or a walk:
//   document_index  documents of all epochs, shuffled
//   sample_index    where sample j starts: (position in document_index, token offset)
//   shuffle_index   sample id -> j
// When the last epoch is less than 80 % used, it is shuffled apart, so that its documents do not
// crowd out earlier ones.
//
// With packed documents (mt's own order; Megatron has none) samples hold whole documents instead: each epoch's documents, shuffled
// apart, are put into samples one after the other while they fit, and one that is longer than T+1 is cut every T tokens, its pieces
// sharing a token. There is no shuffle_index: documents are shuffled already.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/sample/index_arrays.h"
#include "worker/data/sample/numpy_random.h"

namespace mt {

struct SequenceRange {
  int64_t begin = 0;
  int64_t end = 0;
};
// Megatron's --split: up to three shares (train, validation, test) of `num_sequences`, e.g.
// "969,30,1", cut at rounded (half to even) multiples. INVALID_ARGUMENT: not a list of one to three
// non-negative numbers with a positive sum.
absl::StatusOr<std::vector<SequenceRange>> SplitSequences(absl::string_view split,
                                                          int64_t num_sequences);

// Tokens of each sequence: int32 values of any alignment, as PREFIX.idx has them.
class SequenceLengths {
 public:
  SequenceLengths(const char* data, int64_t count) : data_(data), count_(count) {}
  explicit SequenceLengths(std::span<const int32_t> lengths)
      : SequenceLengths(reinterpret_cast<const char*>(lengths.data()),
                        static_cast<int64_t>(lengths.size())) {}
  int32_t operator[](int64_t sequence) const {
    int32_t length;
    std::memcpy(&length, data_ + 4 * sequence, sizeof(length));
    return length;
  }
  void Prefetch(int64_t sequence) const { __builtin_prefetch(data_ + 4 * sequence); }
  int64_t size() const { return count_; }
  // XXH3-128 of the values.
  std::string Digest() const;

 private:
  const char* data_;
  int64_t count_;
};

// Megatron's sample_index in 8 bytes: int32 while document_index has fewer than 2^31 entries, int64 from there on.
struct SampleStart {
  uint32_t position = 0;  // in document_index
  int32_t offset = 0;     // in tokens
  bool operator==(const SampleStart&) const = default;
};

struct SampleIndexOptions {
  SequenceRange sequences;
  int64_t sequence_length = 0;  // T
  int64_t num_samples = 0;      // at least this many; 0 = one epoch
  uint32_t seed = 1234;
  bool pack_documents = false;
  int threads = 0;  // to build with; 0 = one per core. The order does not depend on it.
};

// What can be said before anything is shuffled.
struct SampleIndexPlan {
  int64_t num_epochs = 0;
  int64_t num_samples = 0;
  int64_t samples_without_final_epoch = 0;
  bool separate_final_epoch = false;
};
// Of an order that is not packed. `epoch_tokens`: those of options.sequences. INVALID_ARGUMENT: nothing to train on, a nonsensical
// size, or an order of more than 2^32-1 documents or 2^32-2 samples (the data repeated too often).
absl::StatusOr<SampleIndexPlan> PlanSampleIndex(int64_t epoch_tokens,
                                                const SampleIndexOptions& options);

struct SampleIndex {
  std::span<const int32_t> document_index;
  std::span<const SampleStart> sample_index;  // one more than there are samples
  std::span<const uint32_t> shuffle_index;    // empty: not shuffled
  IndexArrays arrays;                         // what the three point into, in this order

  explicit SampleIndex(IndexArrays arrays);
  int64_t num_samples() const { return static_cast<int64_t>(sample_index.size()) - 1; }
  // Where the sample with this number begins, and where the one behind it in the walk does.
  int64_t InWalk(int64_t sample) const {
    return shuffle_index.empty() ? sample : shuffle_index[static_cast<size_t>(sample)];
  }
};

// Errors as PlanSampleIndex; RESOURCE_EXHAUSTED: no memory.
absl::StatusOr<SampleIndex> BuildSampleIndex(const SequenceLengths& lengths,
                                             const SampleIndexOptions& options);

// The walk alone, what Megatron's helpers.cpp does in build_sample_idx: `starts` has one more place than there are samples, of which
// there are no more than the documents have tokens for.
void WalkSamples(const SequenceLengths& lengths, std::span<const int32_t> document_index,
                 int64_t sequence_length, int threads, std::span<SampleStart> starts);

}  // namespace mt
