// A chunk of a file as it goes into the dataset, and the thread's work that makes it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/status.h"
#include "worker/data/build/document_hashes.h"
#include "worker/data/build/record_encoder.h"
#include "worker/data/indexed_dataset.h"
#include "worker/data/text/record_reader.h"

namespace mt {

struct BadRecord {
  size_t num_before = 0;  // documents that stand before it in the chunk
  int64_t line = 0;
  std::string reason;
  std::string found;  // as it stands in the file, at most kKeptBytes of it
  static constexpr size_t kKeptBytes = 64 << 10;

  // On the heap; a short string may be counted though it is not.
  size_t memory_bytes() const { return reason.capacity() + found.capacity(); }
};

// Records between two documents that are none.
struct LeftOut {
  size_t num_before = 0;  // documents before them in the chunk
  int64_t empty_documents = 0;
  int64_t duplicates = 0;  // known as such already when they were met
};

struct EncodedChunk {
  size_t file = 0;
  TextPosition end;         // in the file
  uint64_t file_bytes = 0;  // of the file itself, read by then
  std::string file_xxh3;  // not empty: the file has ended, and there is nothing else in this chunk
  // Documents in order: their tokens as in PREFIX.bin, how many, whether each has a loss (if the encoder makes losses), and the
  // hashes of their records (if documents are deduplicated).
  std::string bin;
  std::vector<int32_t> lengths;
  std::vector<uint8_t> loss;
  std::vector<DocumentHash> hashes;
  std::vector<BadRecord> bad;
  std::vector<LeftOut> left_out;
  uint64_t text_bytes = 0;

  size_t memory_bytes() const {
    size_t bytes = bin.capacity() + lengths.capacity() * sizeof(int32_t) + loss.capacity() +
                   hashes.capacity() * sizeof(DocumentHash) +
                   left_out.capacity() * sizeof(LeftOut) + bad.capacity() * sizeof(BadRecord);
    for (const BadRecord& record : bad) bytes += record.memory_bytes();
    return bytes;
  }
};

// One thread's.
class ChunkEncoder {
 public:
  // `known`: records that stand earlier in the build, or null. All must outlive the encoder.
  ChunkEncoder(Clock* clock, const RecordEncoderFactory& encoders, const TextSourceOptions& text,
               TokenType type, const DocumentHashes* known);

  // Fills what comes from the records. INVALID_ARGUMENT from the record's encoder makes a bad record; other errors end the build.
  absl::Status Encode(const TextChunk& chunk, TextFormat format, EncodedChunk* encoded);

  absl::Duration parse_time() const { return total_time_ - encode_time_; }
  absl::Duration encode_time() const { return encode_time_; }

 private:
  absl::Status Add(const Record& record, EncodedChunk* encoded);

  Clock* const clock_;
  const TokenType type_;
  const bool makes_loss_;
  const DocumentHashes* const known_;
  const std::unique_ptr<RecordEncoder> encoder_;
  RecordReader records_;
  EncodedDocument document_;
  absl::Duration total_time_, encode_time_;
};

}  // namespace mt
