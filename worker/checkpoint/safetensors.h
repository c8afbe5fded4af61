// safetensors files: 8 bytes header length (little-endian), a JSON header, then the tensors' bytes,
// C order, little-endian.
//
// The reader trusts nothing: header length, names, types, shapes and offsets are checked (overflow
// included) before any of them is used; offsets must be contiguous from 0 and end exactly at the
// end of the file; duplicate keys are refused. What is broken is DATA_LOSS and names the file and
// the place. Nothing is read but the header until asked for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "kernels/abi/mt_backend.h"

namespace mt {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // "F32", "BF16", ...
  std::vector<int64_t> shape;  // each >= 0
  uint64_t begin = 0;          // in the byte buffer, which begins after the header
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

// "F32" and so on; empty if safetensors has no name for it.
absl::string_view SafetensorsDtype(mt_dtype dtype);
int ElementBytes(mt_dtype dtype);

// The header (8-byte length included) alone, of a file of `file_bytes` bytes in all; `path` is for
// messages.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t buffer_bytes,
                                                         const std::string& path);

class SafetensorsReader {
 public:
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;

  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> Open(Env* env, const std::string& path);

  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const SafetensorsEntry* Find(
      absl::string_view name) const;  // null if absent; valid as long as the reader
  // Exactly `size` bytes, from `offset` within the entry. Thread-safe. DATA_LOSS if the file has
  // become shorter.
  absl::Status Read(const SafetensorsEntry& entry, uint64_t offset, uint64_t size,
                    void* buffer) const;
  const std::string& path() const { return path_; }

 private:
  SafetensorsReader(std::string path, std::unique_ptr<RandomAccessFile> file,
                    SafetensorsHeader header, uint64_t data_start);
  std::string path_;
  std::unique_ptr<RandomAccessFile> file_;
  SafetensorsHeader header_;
  uint64_t data_start_;
  std::map<std::string, size_t> by_name_;
};

// Sorts entries (larger elements first, then by name, so that each is aligned), sets their begin
// and end from dtype and shape, and returns the file's head: length, header, and spaces up to a
// multiple of 4096 so that the bytes begin on a page.
absl::StatusOr<std::string> BuildSafetensorsHead(
    std::vector<SafetensorsEntry>& entries, const std::map<std::string, std::string>& metadata);

}  // namespace mt
