// Samples of one dataset by number. Immutable after Open; thread-safe.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/indexed_dataset.h"
#include "worker/data/loss_file.h"
#include "worker/data/sample/sample_index.h"

namespace mt {

class IndexCache;

struct GptDatasetOptions {
  std::string prefix;           // PREFIX.bin, PREFIX.idx, PREFIX.loss if it is there
  std::string split = "1,0,0";  // Megatron's --split
  int share = 0;                // of the split: 0 is trained on, 1 is held out, 2 is for tests
  int64_t sequence_length = 0;  // T
  int64_t num_samples = 0;      // at least; 0 = one epoch
  int64_t seed = 1234;          // 0 .. 2^32-1, as numpy takes it
  int64_t vocab_size = 0;       // ids must be below it; 0 = not checked
  bool pack_documents = false;  // whole documents in samples: sample_index.h
  int32_t padding = 0;          // the id that fills packed samples
};

// What a sample is made of, in the caller's memory; each (T + 1).
struct Sample {
  std::span<int32_t> tokens;
  // 1 where the token, as the label of the one before it, has a loss. Not written for the first token, which labels nothing.
  std::span<uint8_t> has_loss;
  // Where the document that a token is of begins in the sample. Written for packed documents only, whose borders are known.
  std::span<int32_t> document_start;
};

class GptDataset {
 public:
  // As IndexedDataset::Open and BuildSampleIndex. The order is looked for in `cache` if that is not null.
  static absl::StatusOr<std::unique_ptr<GptDataset>> Open(Env* env,
                                                          const GptDatasetOptions& options,
                                                          const IndexCache* cache = nullptr);
  // What Open would say, as far as it can be known without an order; then the ids of the first tokens are compared with the vocabulary.
  static absl::Status Check(Env* env, const GptDatasetOptions& options,
                            int64_t max_tokens_read = 64 << 20);
  // How many samples Open would give, without making an order unless documents are packed.
  static absl::StatusOr<int64_t> CountSamples(Env* env, const GptDatasetOptions& options);

  // Samples that the order holds: at least options.num_samples.
  int64_t num_samples() const { return index_.num_samples(); }
  int64_t sequence_length() const { return options_.sequence_length; }
  const IndexedDataset& data() const { return *data_; }
  const SampleIndex& index() const { return index_; }
  // Some label may be without a loss.
  bool masks_loss() const { return losses_ != nullptr || options_.pack_documents; }
  bool has_loss_file() const { return losses_ != nullptr; }

  // OUT_OF_RANGE: no such sample. INVALID_ARGUMENT: spans of another size. DATA_LOSS: an id that is not in the vocabulary, or a
  // failed read.
  absl::Status Read(int64_t sample, const Sample& into) const;

 private:
  GptDataset(const GptDatasetOptions& options, std::unique_ptr<IndexedDataset> data,
             SampleIndex index)
      : options_(options), data_(std::move(data)), index_(std::move(index)) {}
  absl::Status ReadPart(int64_t sequence, int64_t offset, size_t at, size_t count,
                        const Sample& into) const;
  absl::Status ReadPacked(SampleStart at, SampleStart end, const Sample& into) const;

  GptDatasetOptions options_;
  std::unique_ptr<IndexedDataset> data_;
  SampleIndex index_;
  std::unique_ptr<LossFile> losses_;  // null: losses everywhere
};

}  // namespace mt
