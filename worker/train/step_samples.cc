#include "worker/train/step_samples.h"

#include <algorithm>

namespace mt {

StepSamples::StepSamples(const RankShape& shape, int64_t vocab, int data_ranks, int data_rank,
                         const TokenRows& kinds, bool masked)
    : batch_(shape.batch),
      sequence_(shape.sequence),
      vocab_(vocab),
      data_ranks_(data_ranks),
      data_rank_(data_rank),
      wants_tokens_(kinds.input_ids != nullptr || kinds.targets != nullptr),
      wants_labels_(kinds.targets != nullptr),
      wants_documents_(kinds.document_start != nullptr || kinds.positions != nullptr),
      masks_documents_(kinds.document_start != nullptr),
      counts_(kinds.mtp_targets != nullptr),
      ids_(static_cast<size_t>(shape.batch)) {
  masked_ = masked && wants_labels_;
  Grow(masked_ ? shape.micro_batches : 1);
}

void StepSamples::Grow(int64_t places) {
  const auto grow = [places](bool wanted, auto& buffer, int64_t each) {
    const size_t size = wanted ? static_cast<size_t>(places * each) : 0;
    buffer.resize(std::max(buffer.size(), size));
  };
  grow(wants_tokens_, tokens_, sample_tokens());
  grow(masked_, masks_, batch_ * sequence_);
  grow(wants_documents_, starts_, batch_ * sequence_);
}

absl::Status StepSamples::Begin(BatchSource* source, int64_t first_sample, int64_t micro_batches) {
  source_ = source;
  first_sample_ = first_sample;
  const int64_t rows = batch_ * sequence_;
  masked_ = wants_labels_ && (source->masks_loss() || counts_);
  Grow(masked_ ? micro_batches : 1);
  labels_ = {.main = static_cast<double>(micro_batches * rows),
             .mtp = static_cast<double>(micro_batches * (rows - batch_))};
  if (!masked_) return absl::OkStatus();
  labels_ = {};
  for (int64_t m = 0; m < micro_batches; ++m) {
    MT_RETURN_IF_ERROR(Fetch(m, m));
    for (int64_t sample = m * batch_; sample < (m + 1) * batch_; ++sample) {
      const LabelCounts counts =
          Count(masks_.data() + sample * sequence_,
                starts_.data() + (wants_documents_ ? sample * sequence_ : 0));
      labels_.main += counts.main;
      labels_.mtp += counts.mtp;
    }
  }
  return absl::OkStatus();
}

LabelCounts StepSamples::Count(const uint8_t* mask, const int32_t* starts) const {
  LabelCounts counts;
  for (int64_t t = 0; t < sequence_; ++t) {
    counts.main += mask[t] != 0;
    counts.mtp += HasMtpTarget(mask, starts, t);
  }
  return counts;
}

absl::Status StepSamples::Fetch(int64_t micro_batch, int64_t place) {
  const int64_t first = FirstSample(micro_batch), rows = batch_ * sequence_;
  for (int64_t b = 0; b < batch_; ++b) ids_[static_cast<size_t>(b)] = first + b;
  Batch batch;
  const auto part = [place](auto& buffer, int64_t each) {
    return std::span(buffer).subspan(static_cast<size_t>(place * each), static_cast<size_t>(each));
  };
  if (wants_tokens_) batch.tokens = part(tokens_, sample_tokens());
  if (wants_documents_) batch.document_start = part(starts_, rows);
  if (masked_) {
    const std::span<uint8_t> mask = part(masks_, rows);
    if (source_->masks_loss())
      batch.loss_mask = mask;
    else
      std::fill(mask.begin(), mask.end(), uint8_t{1});
  }
  MT_RETURN_IF_ERROR(source_->Fetch(ids_, batch));
  if (wants_tokens_) MT_RETURN_IF_ERROR(CheckTokens(micro_batch, batch.tokens.data()));
  return wants_documents_ ? CheckDocuments(micro_batch, batch.document_start.data())
                          : absl::OkStatus();
}

absl::Status StepSamples::CheckTokens(int64_t micro_batch, const int32_t* tokens) const {
  for (int64_t i = 0; i < sample_tokens(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_) continue;
    return absl::OutOfRangeError(
        absl::StrCat("sample ", FirstSample(micro_batch) + i / (sequence_ + 1), " has token id ",
                     tokens[i], " at position ", i % (sequence_ + 1),
                     ", but model.vocab = ", vocab_, "; set model.vocab to the tokenizer's size"));
  }
  return absl::OkStatus();
}

// Kernels take the order of documents for granted: what breaks it is not let through.
absl::Status StepSamples::CheckDocuments(int64_t micro_batch, const int32_t* starts) const {
  for (int64_t b = 0; b < batch_; ++b, starts += sequence_) {
    for (int64_t t = 0; t < sequence_; ++t) {
      const int32_t before = t == 0 ? 0 : starts[t - 1];
      if (starts[t] >= before && starts[t] <= t) continue;
      return absl::InternalError(absl::StrCat("sample ", FirstSample(micro_batch) + b,
                                              ": the document of token ", t, " begins at token ",
                                              starts[t], ", that of the token before at ", before));
    }
  }
  return absl::OkStatus();
}

absl::Status StepSamples::Write(int64_t micro_batch, const TokenRows& rows) {
  const int64_t place = masked_ ? micro_batch : 0;
  if (!masked_) MT_RETURN_IF_ERROR(Fetch(micro_batch, place));
  const int32_t* tokens = tokens_.data() + place * sample_tokens();
  for (int64_t b = 0; b < batch_; ++b) {
    const int64_t first = (place * batch_ + b) * sequence_;
    const uint8_t* const mask = masked_ ? masks_.data() + first : nullptr;
    const int32_t* const starts = wants_documents_ ? starts_.data() + first : nullptr;
    for (int64_t t = 0; t < sequence_; ++t) {
      const int64_t row = t * batch_ + b;
      const int32_t* const token = tokens + b * (sequence_ + 1) + t;
      if (rows.input_ids != nullptr) rows.input_ids[row] = token[0];
      if (rows.targets != nullptr)
        rows.targets[row] = mask == nullptr || mask[t] != 0 ? token[1] : -1;
      if (rows.next_tokens != nullptr) rows.next_tokens[row] = token[1];
      if (rows.mtp_targets != nullptr)
        rows.mtp_targets[row] = HasMtpTarget(mask, starts, t) ? token[2] : -1;
      if (rows.document_start != nullptr) rows.document_start[row] = starts[t];
      if (rows.positions != nullptr) rows.positions[row] = static_cast<int32_t>(t) - starts[t];
    }
  }
  return absl::OkStatus();
}

}  // namespace mt
