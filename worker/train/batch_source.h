// Where the trainer gets its samples.
#pragma once

#include <cstdint>
#include <span>

#include "common/status.h"

namespace mt {

// B samples of T + 1 tokens as the trainer wants them, in memory of the caller. Spans that are empty are not wanted.
struct Batch {
  // (B, T + 1): inputs are the first T of a sample, labels the last T.
  std::span<int32_t> tokens;
  // (B, T): 1 where the label at that place has a loss, 0 where it has none.
  std::span<uint8_t> loss_mask;
  // (B, T): where the document that an input token belongs to begins in its sample: 0 <= document_start[t] <= t, never falling
  // along t. All zeros: the sample is one document.
  std::span<int32_t> document_start;
};

class BatchSource {
 public:
  virtual ~BatchSource() = default;

  // Sample ids count through the run: id i is the i-th sample in the data's shuffled order (epoch
  // after epoch), so that the batch of a step follows from `consumed_samples` alone. Fills what `batch` wants of the samples, in
  // the order of `sample_ids`; T is the job's sequence length. INVALID_ARGUMENT: a span of another size. Called from the
  // trainer's thread only.
  //
  // Ranks may ask for parts: the first pipeline stage for tokens, the last for all, the others, where the job masks documents, for
  // document_start alone.
  virtual absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) = 0;

  // Whether any label may be without a loss; the same on every rank of a job. Only then is loss_mask asked for, for a whole step
  // before its first pass.
  virtual bool masks_loss() const { return false; }
};

}  // namespace mt
