// The samples of a step or of an evaluation: read from their source, checked, and written as a stage wants them.
//
// Micro-batch m of data rank r is samples [m B D + r B, + B) of the step's global batch (D data ranks): Megatron's order.
//
// Where every label has a loss, a micro-batch is read when it is wanted. Where labels may be masked, the loss is divided by the
// number of those that are not, in the whole global batch: then Begin reads all of the rank's samples, which Write hands on.
#pragma once

#include <cstdint>
#include <vector>

#include "common/spec/activation_plan.h"
#include "common/status.h"
#include "worker/train/batch_source.h"
#include "worker/train/token_staging.h"

namespace mt {

// Labels that have a loss.
struct LabelCounts {
  double main = 0;
  double mtp = 0;  // of multi-token prediction
};

class StepSamples {
 public:
  // Of micro-batches of `shape`. `kinds`: what Write will be asked for. `masked`: labels may be masked, as a source tells, or by
  // documents for multi-token prediction; there is then memory for a step of shape.micro_batches of them.
  StepSamples(const RankShape& shape, int64_t vocab, int data_ranks, int data_rank,
              const TokenRows& kinds, bool masked);

  // From sample `first_sample` of `source` (null where no kind is wanted) on, `micro_batches` of this rank.
  absl::Status Begin(BatchSource* source, int64_t first_sample, int64_t micro_batches);
  // Of this rank's samples of the step; where no labels are wanted, as if all had a loss.
  const LabelCounts& labels() const { return labels_; }
  // OUT_OF_RANGE: a token id outside the vocabulary. INTERNAL: documents that do not follow each other.
  absl::Status Write(int64_t micro_batch, const TokenRows& rows);

 private:
  // Buffers never shrink.
  void Grow(int64_t places);
  // Micro-batch `micro_batch` into place `place` of the buffers.
  absl::Status Fetch(int64_t micro_batch, int64_t place);
  absl::Status CheckTokens(int64_t micro_batch, const int32_t* tokens) const;
  absl::Status CheckDocuments(int64_t micro_batch, const int32_t* starts) const;
  // Of one sample: its labels' mask and its documents.
  LabelCounts Count(const uint8_t* mask, const int32_t* starts) const;
  bool HasMtpTarget(const uint8_t* mask, const int32_t* starts, int64_t t) const {
    return t + 1 < sequence_ && mask[t + 1] != 0 && !(masks_documents_ && starts[t + 1] == t + 1);
  }
  int64_t FirstSample(int64_t micro_batch) const {
    return first_sample_ + (micro_batch * data_ranks_ + data_rank_) * batch_;
  }
  int64_t sample_tokens() const { return batch_ * (sequence_ + 1); }

  const int64_t batch_, sequence_, vocab_;
  const int data_ranks_, data_rank_;
  const bool wants_tokens_, wants_labels_, wants_documents_, masks_documents_;
  const bool counts_;  // whatever the source
  BatchSource* source_ = nullptr;
  int64_t first_sample_ = 0;
  bool masked_ = false;  // of this step: all of it is in the buffers
  LabelCounts labels_;
  // By place: one, or all of a step.
  std::vector<int64_t> ids_;     // (B)
  std::vector<int32_t> tokens_;  // (places, B, T + 1)
  std::vector<uint8_t> masks_;   // (places, B, T)
  std::vector<int32_t> starts_;  // (places, B, T)
};

}  // namespace mt
