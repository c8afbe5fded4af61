// Writes one safetensors file from its first byte to its last, hashing as it goes. The file gets its name when it is whole and
// durable; until then it has a temporary one, which goes away with the writer.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/hash.h"
#include "common/status.h"
#include "worker/checkpoint/safetensors.h"

namespace mt {

class SafetensorsWriter {
 public:
  // Sorts `entries` (BuildSafetensorsHead); their bytes are appended in that order. The folder exists. The temporary name is
  // `path` + ".tmp" + `mark`: writers of one path who know nothing of each other have different marks.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      Env* env, const std::string& path, std::vector<SafetensorsEntry>& entries,
      const std::map<std::string, std::string>& metadata, const std::string& mark = "");
  ~SafetensorsWriter();

  absl::Status Append(absl::string_view bytes);
  // Sync and rename; the folder's own sync is the caller's. INTERNAL: bytes are missing, or too many.
  absl::Status Finish();

  uint64_t size_bytes() const { return written_; }
  std::string xxh3_128() const { return hash_.Hex(); }

 private:
  SafetensorsWriter(Env* env, std::string path, const std::string& mark)
      : env_(env), path_(std::move(path)), temporary_(absl::StrCat(path_, ".tmp", mark)) {}

  Env* const env_;
  const std::string path_, temporary_;
  std::unique_ptr<WritableFile> file_;
  Xxh3Stream hash_;
  uint64_t written_ = 0, due_ = 0;
  bool finished_ = false;
};

}  // namespace mt
