// Training samples by number. Immutable after Open; thread-safe.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/indexed_dataset.h"
#include "worker/data/sample/sample_index.h"

namespace mt {

struct GptDatasetOptions {
  std::string prefix;           // PREFIX.bin, PREFIX.idx
  std::string split = "1,0,0";  // Megatron's --split
  int share = 0;                // of the split: 0 is trained on, 1 is held out
  int64_t sequence_length = 0;  // T
  int64_t num_samples = 0;      // steps * global batch; 0 = one epoch
  int64_t seed = 1234;          // 0 .. 2^32-1, as numpy takes it
  int64_t vocab_size = 0;       // ids must be below it; 0 = not checked
};

class GptDataset {
 public:
  // As IndexedDataset::Open and BuildSampleIndex.
  static absl::StatusOr<std::unique_ptr<GptDataset>> Open(Env* env,
                                                          const GptDatasetOptions& options);

  // Samples that the order holds: at least options.num_samples.
  int64_t num_samples() const { return index_.num_samples(); }
  int64_t sequence_length() const { return options_.sequence_length; }
  const IndexedDataset& data() const { return *data_; }
  const SampleIndex& index() const { return index_; }

  // The T+1 tokens of a sample: inputs are the first T, labels the last T. `sample` is the number
  // of samples that the run has consumed before it. OUT_OF_RANGE: no such sample. DATA_LOSS: an id
  // that is not in the vocabulary, or a failed read.
  absl::Status Fetch(int64_t sample, std::span<int32_t> tokens) const;

 private:
  GptDataset() = default;
  GptDatasetOptions options_;
  std::unique_ptr<IndexedDataset> data_;
  SampleIndex index_;
};

// What can be said without starting a rank: the pair is whole, has something to train on, and no id
// of its first `max_tokens_read` tokens is outside the vocabulary. Errors as Open.
absl::Status CheckTrainingData(Env* env, const GptDatasetOptions& options,
                               int64_t max_tokens_read = 64 << 20);

}  // namespace mt
