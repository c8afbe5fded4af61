// Megatron's indexed dataset: PREFIX.bin (tokens, nothing else) and PREFIX.idx (where each sequence
// lies). The format is described in docs/spec/dataset.md.
//
// Nothing in the files is trusted. Open checks all of PREFIX.idx against itself and against the
// size of PREFIX.bin, so that afterwards every sequence lies inside PREFIX.bin; what the check
// promises, the accessors rely on.
//
// PREFIX.idx is mapped: its arrays are shared by the ranks of a node and are not aligned, so they
// are copied out value by value. PREFIX.bin is read with ordinary reads instead: a file that was
// cut off behind our back is then an error rather than a SIGBUS, and a training sample is only a
// few kilobytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/mapped_file.h"

namespace mt {

// The codes of the file format. Codes 6 and 7 (floating point) exist too, but are no tokens: Open
// refuses them.
enum class TokenType : uint8_t {
  kUint8 = 1,
  kInt8 = 2,
  kInt16 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kUint16 = 8,
};
int TokenBytes(TokenType type);
absl::string_view TokenTypeName(TokenType type);
// Megatron's choice: uint16 when every id surely fits (vocab_size < 65500), else int32.
TokenType TokenTypeForVocabulary(int64_t vocab_size);

constexpr absl::string_view kIndexMagic = absl::string_view("MMIDIDX\0\0", 9);
constexpr uint64_t kIndexVersion = 1;
constexpr size_t kIndexHeaderBytes = 34;

// Immutable after Open; thread-safe.
class IndexedDataset {
 public:
  // NOT_FOUND: a file of the pair is missing. INVALID_ARGUMENT: not an index, or one that this
  // program cannot train on. DATA_LOSS: cut off, or the two files do not belong together. Every
  // message names file, field, value and remedy.
  static absl::StatusOr<std::unique_ptr<IndexedDataset>> Open(Env* env, const std::string& prefix);
  IndexedDataset(const IndexedDataset&) = delete;
  IndexedDataset& operator=(const IndexedDataset&) = delete;

  const std::string& prefix() const { return prefix_; }
  TokenType type() const { return type_; }
  int64_t num_sequences() const { return num_sequences_; }
  int64_t num_documents() const { return num_document_entries_ - 1; }
  int64_t num_tokens() const { return num_tokens_; }
  uint64_t bin_bytes() const { return bin_bytes_; }

  // Tokens of a sequence. `sequence` is in [0, num_sequences()).
  int32_t Length(int64_t sequence) const;
  // Number of a sequence's first token in PREFIX.bin; `sequence` is in [0, num_sequences()], the last
  // one giving num_tokens().
  int64_t TokenOffset(int64_t sequence) const;
  // Tokens of all sequences, as Length gives them: int32 values that are not aligned.
  const char* lengths() const { return index_ + kIndexHeaderBytes; }
  // First sequence of a document; `document` is in [0, num_documents()], the last one giving
  // num_sequences().
  int64_t DocumentStart(int64_t document) const;

  // Copies `tokens.size()` tokens that start `offset` tokens into `sequence`. Values that do not
  // fit int32 or are negative are DATA_LOSS; OUT_OF_RANGE if the range leaves the sequence.
  absl::Status Read(int64_t sequence, int64_t offset, std::span<int32_t> tokens) const;

 private:
  IndexedDataset() = default;
  absl::Status Validate();
  uint64_t Pointer(int64_t sequence) const;

  std::string prefix_;
  std::unique_ptr<MappedFile> mapping_;  // of PREFIX.idx
  const char* index_ = nullptr;
  size_t index_bytes_ = 0;
  std::unique_ptr<RandomAccessFile> bin_;
  uint64_t bin_bytes_ = 0;
  TokenType type_ = TokenType::kUint16;
  int64_t num_sequences_ = 0;
  int64_t num_document_entries_ = 1;
  int64_t num_tokens_ = 0;
};

}  // namespace mt
