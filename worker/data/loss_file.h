// PREFIX.loss: which tokens of PREFIX.bin have a loss when they are labels. Datasets without the file (all that Megatron writes)
// have a loss everywhere.
//
// One bit per token, the lowest bit first: bit i % 8 of byte i / 8 belongs to token i of PREFIX.bin. The file has exactly
// ceil(tokens / 8) bytes; bits beyond the last token are 0.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "common/env.h"
#include "common/status.h"

namespace mt {

std::string LossPath(const std::string& prefix);
inline uint64_t LossBytes(int64_t num_tokens) {
  return static_cast<uint64_t>(num_tokens) / 8 + (num_tokens % 8 != 0 ? 1 : 0);
}

// Immutable after Open; thread-safe.
class LossFile {
 public:
  // NOT_FOUND: the dataset has none. DATA_LOSS: not the size that `num_tokens` tokens need.
  static absl::StatusOr<std::unique_ptr<LossFile>> Open(Env* env, const std::string& prefix,
                                                        int64_t num_tokens);

  // One byte, 0 or 1, for each of the tokens that start at `first_token` of PREFIX.bin
  // (IndexedDataset::TokenOffset). OUT_OF_RANGE: they leave the file; DATA_LOSS: the file was changed meanwhile.
  absl::Status Read(int64_t first_token, std::span<uint8_t> losses) const;

 private:
  LossFile(std::string path, std::unique_ptr<RandomAccessFile> file, int64_t num_tokens)
      : path_(std::move(path)), file_(std::move(file)), num_tokens_(num_tokens) {}

  const std::string path_;
  const std::unique_ptr<RandomAccessFile> file_;
  const int64_t num_tokens_;
};

// Packs losses into the bytes of the file. The bytes of a longer stream are those of its parts, cut anywhere.
class LossPacker {
 public:
  // Appends the whole bytes that are ready to `packed`. Each of `losses` is 0 or 1.
  void Append(std::span<const uint8_t> losses, std::string* packed);
  // Appends the last byte, if one is open. The packer can be used again for a new stream.
  void Finish(std::string* packed);

  // Bits of the open byte, 0..7 of them: what a resumed build has to go on from.
  struct OpenByte {
    uint8_t bits = 0;
    uint8_t num_bits = 0;
  };
  OpenByte open_byte() const { return open_; }
  void set_open_byte(OpenByte open) { open_ = open; }

 private:
  OpenByte open_;
};

}  // namespace mt
