// Writes PREFIX.bin and PREFIX.idx in one pass.
//
// Invariant: PREFIX.idx exists only if PREFIX.bin beside it is whole and on stable storage.
// Everything is written under names ending in ".partial"; Finish first removes an old PREFIX.idx,
// then renames the new PREFIX.bin into place and, last of all, PREFIX.idx. Whatever is killed
// whenever, a reader finds the old pair, the new pair, or no PREFIX.idx.
//
// Memory does not grow with the data: document lengths are spooled to PREFIX.lengths.partial.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "common/env.h"
#include "common/hash.h"
#include "common/status.h"
#include "worker/data/indexed_dataset.h"

namespace mt {

struct IndexedDatasetSummary {
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  uint64_t bin_bytes = 0;
  uint64_t idx_bytes = 0;
  std::string bin_xxh3;  // of the files as written
  std::string idx_xxh3;
  uint64_t loss_bytes = 0;
  std::string loss_xxh3;  // empty: there is no PREFIX.loss
};

class IndexedDatasetWriter {
 public:
  // FAILED_PRECONDITION: another process is writing this prefix.
  static absl::StatusOr<std::unique_ptr<IndexedDatasetWriter>> Create(Env* env,
                                                                      const std::string& prefix,
                                                                      TokenType type);
  // Removes what was not finished.
  ~IndexedDatasetWriter();
  IndexedDatasetWriter(const IndexedDatasetWriter&) = delete;
  IndexedDatasetWriter& operator=(const IndexedDatasetWriter&) = delete;

  // One document of one sequence. INVALID_ARGUMENT: an id does not fit the token type, or more than
  // 2^31-1 ids.
  absl::Status AddDocument(std::span<const int32_t> tokens);

  // Makes the files durable without showing them yet, so that a caller may write what describes
  // them. Call once.
  absl::StatusOr<IndexedDatasetSummary> Seal();
  // Shows the pair. Call once, after Seal.
  absl::Status Commit();

 private:
  IndexedDatasetWriter(Env* env, std::string prefix, TokenType type);
  absl::Status WriteBuffered();
  absl::Status WriteIndex();

  Env* env_;
  std::string prefix_;
  TokenType type_;
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<WritableFile> bin_;
  std::unique_ptr<WritableFile> lengths_;
  std::string bin_buffer_;
  std::string lengths_buffer_;
  Xxh3Stream bin_digest_;
  IndexedDatasetSummary summary_;
};

}  // namespace mt
