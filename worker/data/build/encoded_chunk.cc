#include "worker/data/build/encoded_chunk.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>

#include "common/check.h"
#include "worker/data/indexed_dataset_writer.h"

namespace mt {

namespace {

LeftOut& LeftOutHere(EncodedChunk* encoded) {
  const size_t num_before = encoded->lengths.size();
  if (encoded->left_out.empty() || encoded->left_out.back().num_before != num_before)
    encoded->left_out.push_back({.num_before = num_before});
  return encoded->left_out.back();
}

}  // namespace

DocumentHash HashDocument(absl::string_view record) {
  const XXH128_hash_t hash = XXH3_128bits(record.data(), record.size());
  return {.high = hash.high64, .low = hash.low64};
}

ChunkEncoder::ChunkEncoder(Clock* clock, const RecordEncoderFactory& encoders,
                           const TextSourceOptions& text, TokenType type,
                           const DocumentHashes* known)
    : clock_(clock),
      type_(type),
      makes_loss_(encoders.makes_loss()),
      known_(known),
      encoder_(encoders.NewEncoder()),
      records_(text) {}

absl::Status ChunkEncoder::Encode(const TextChunk& chunk, TextFormat format,
                                  EncodedChunk* encoded) {
  const absl::Duration start = clock_->Monotonic();
  records_.Begin(&chunk, format);
  Record record;
  while (records_.Next(&record)) {
    if (record.reason.empty()) {
      const absl::Status status = Add(record, encoded);
      if (status.ok()) continue;
      if (!absl::IsInvalidArgument(status)) return status;
      record.reason = std::string(status.message());
      record.found = record.text;
    }
    encoded->bad.push_back({encoded->lengths.size(), record.line, record.reason,
                            std::string(record.found.substr(0, BadRecord::kKeptBytes))});
  }
  if (document_.tokens.capacity() > ChunkReader::kLargeBytes) document_ = EncodedDocument();
  total_time_ += clock_->Monotonic() - start;
  return absl::OkStatus();
}

absl::Status ChunkEncoder::Add(const Record& record, EncodedChunk* encoded) {
  DocumentHash hash;
  if (known_ != nullptr) {
    hash = HashDocument(record.text);
    // Known before this chunk: encoding it would be for nothing. Those that only the writer can know are left out there.
    if (known_->Contains(hash)) {
      ++LeftOutHere(encoded).duplicates;
      return absl::OkStatus();
    }
  }
  document_.Clear();
  const absl::Duration start = clock_->Monotonic();
  const absl::Status status = encoder_->Encode(record.text, &document_);
  encode_time_ += clock_->Monotonic() - start;
  MT_RETURN_IF_ERROR(status);
  if (document_.tokens.empty()) {
    ++LeftOutHere(encoded).empty_documents;
    return absl::OkStatus();
  }
  if (document_.tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat(document_.tokens.size(), " tokens; one document holds at most 2147483647"));
  }
  // An id outside the type is the tokenizer's fault, not the record's.
  if (const absl::Status fits = AppendTokens(type_, document_.tokens, &encoded->bin); !fits.ok())
    return absl::InternalError(fits.message());
  encoded->lengths.push_back(static_cast<int32_t>(document_.tokens.size()));
  if (makes_loss_) {
    if (document_.loss.empty()) document_.loss.assign(document_.tokens.size(), 1);
    MT_CHECK(document_.loss.size() == document_.tokens.size());
    encoded->loss.insert(encoded->loss.end(), document_.loss.begin(), document_.loss.end());
  }
  if (known_ != nullptr) encoded->hashes.push_back(hash);
  encoded->text_bytes += record.text.size();
  return absl::OkStatus();
}

}  // namespace mt
