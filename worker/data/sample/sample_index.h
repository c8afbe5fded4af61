// The order of training samples, equal to Megatron-LM's GPTDataset for the same lengths, split,
// sequence length, number of samples and seed. It is a pure function of those, so every rank
// computes it alone and agrees with all others, and a run resumes at any sample knowing one
// integer.
//
// A sample is T+1 tokens out of the stream that the documents make in document_index's order;
// neighbouring samples share one token (the last label of one is the first input of the next).
// Three arrays, each a permutation or a walk:
//   document_index  documents of all epochs, shuffled
//   sample_index    where sample j starts: (position in document_index, token offset)
//   shuffle_index   sample id -> j
// When the last epoch is less than 80 % used, it is shuffled apart, so that its documents do not
// crowd out earlier ones.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"

namespace mt {

// numpy.random.RandomState(seed): the stream and the shuffle that Megatron's order is defined by.
// std::mt19937 gives the same words; the standard library's distributions do not, so they are not
// used.
class NumpyRandomState {
 public:
  explicit NumpyRandomState(uint32_t seed) : generator_(seed) {}
  uint32_t Next32() { return static_cast<uint32_t>(generator_()); }
  // Uniform in [0, max], by masking and rejection.
  uint64_t Interval(uint64_t max);
  template <typename T>
  void Shuffle(std::span<T> values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[Interval(i - 1)]);
  }

 private:
  std::mt19937 generator_;
};

struct SequenceRange {
  int64_t begin = 0;
  int64_t end = 0;
};
// Megatron's --split: up to three shares (train, validation, test) of `num_sequences`, e.g.
// "969,30,1", cut at rounded (half to even) multiples. INVALID_ARGUMENT: not a list of one to three
// non-negative numbers with a positive sum.
absl::StatusOr<std::vector<SequenceRange>> SplitSequences(absl::string_view split,
                                                          int64_t num_sequences);

struct SampleStart {
  int32_t position = 0;  // in document_index
  int32_t offset = 0;    // in tokens
  bool operator==(const SampleStart&) const = default;
};

struct SampleIndex {
  std::vector<int32_t> document_index;
  std::vector<SampleStart> sample_index;  // one more than there are samples
  std::vector<uint32_t> shuffle_index;
  int64_t num_epochs = 0;
  bool separate_final_epoch = false;

  int64_t num_samples() const { return static_cast<int64_t>(shuffle_index.size()); }
};

struct SampleIndexOptions {
  SequenceRange sequences;
  int64_t sequence_length = 0;  // T
  int64_t num_samples = 0;      // at least this many; 0 = one epoch
  uint32_t seed = 1234;
};
// `length(sequence)` gives tokens. INVALID_ARGUMENT: nothing to train on, a nonsensical size, or an
// order that would need more than 2^31-1 documents or 2^32-2 samples (the data repeated too often).
absl::StatusOr<SampleIndex> BuildSampleIndex(const std::function<int32_t(int64_t)>& length,
                                             const SampleIndexOptions& options);

}  // namespace mt
