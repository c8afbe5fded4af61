// Writes PREFIX.bin, PREFIX.idx and, for a dataset with losses, PREFIX.loss in one pass.
//
// Everything is written under names ending in ".partial", where no reader looks; CommitDataset (dataset_commit.h) shows it, whole,
// once Seal has made it durable. Memory does not grow with the data: document lengths are spooled to PREFIX.lengths.partial.
//
// A writer that is killed can be gone on with from its last Sync, if its State was kept somewhere.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "common/env.h"
#include "common/hash.h"
#include "common/status.h"
#include "worker/data/indexed_dataset.h"
#include "worker/data/loss_file.h"
#include "worker/data/spool_file.h"

namespace mt {

struct DatasetManifest;

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
  // What was written before a Sync.
  struct State {
    int64_t num_documents = 0;
    int64_t num_tokens = 0;
    SpoolFile::State bin, lengths, loss;
    LossPacker::OpenByte open_loss;
  };

  // With `state`, goes on from there. `lock`: LockDataset's, from a caller that had to have it
  // before; else it is taken here. FAILED_PRECONDITION: another process is writing this prefix.
  // DATA_LOSS: the files are not those of `state`.
  static absl::StatusOr<std::unique_ptr<IndexedDatasetWriter>> Create(
      Env* env, const std::string& prefix, TokenType type, bool makes_loss = false,
      const State* state = nullptr, std::unique_ptr<FileLock> lock = nullptr);
  // Removes what was not committed, unless Keep was called.
  ~IndexedDatasetWriter();
  IndexedDatasetWriter(const IndexedDatasetWriter&) = delete;
  IndexedDatasetWriter& operator=(const IndexedDatasetWriter&) = delete;

  // One document of one sequence. `loss`: 0 or 1 for each token; only with `makes_loss`, and then empty stands for ones.
  // INVALID_ARGUMENT: an id does not fit the token type, or more than 2^31-1 ids.
  absl::Status AddDocument(std::span<const int32_t> tokens, std::span<const uint8_t> loss = {});
  // Many at once, their tokens as they stand in PREFIX.bin; `loss` has one byte for each token, or is empty as above.
  absl::Status AddEncoded(absl::string_view bin, std::span<const int32_t> lengths,
                          std::span<const uint8_t> loss = {});

  // Makes all of it durable, once the folder is synced.
  absl::StatusOr<State> Sync();
  void Keep() { keep_ = true; }

  // Makes the files durable without showing them yet, so that a caller may write what describes them. Call once.
  absl::StatusOr<IndexedDatasetSummary> Seal();
  // StageManifest, if there is one, and CommitDataset. Call once, after Seal.
  absl::Status Commit(const DatasetManifest* manifest = nullptr);

  int64_t num_documents() const { return num_documents_; }
  int64_t num_tokens() const { return num_tokens_; }

 private:
  IndexedDatasetWriter(Env* env, std::string prefix, TokenType type, bool makes_loss);
  absl::Status AddLoss(int64_t num_tokens, std::span<const uint8_t> loss);
  absl::StatusOr<SpoolFile::State> WriteIndex();

  Env* const env_;
  const std::string prefix_;
  const TokenType type_;
  const bool makes_loss_;
  bool keep_ = false;
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<SpoolFile> bin_, lengths_, loss_;
  LossPacker packer_;
  int64_t num_documents_ = 0;
  int64_t num_tokens_ = 0;
  std::string scratch_;
};

// Appends `tokens` as they stand in PREFIX.bin. INVALID_ARGUMENT: an id that does not fit; names it.
absl::Status AppendTokens(TokenType type, std::span<const int32_t> tokens, std::string* bin);

}  // namespace mt
