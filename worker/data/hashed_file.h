// A file that is written in large pieces and hashed on its way out.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "common/env.h"
#include "common/hash.h"
#include "common/status.h"

namespace mt {

class HashedFile {
 public:
  explicit HashedFile(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}

  absl::Status PutBytes(absl::string_view bytes) {
    buffer_.append(bytes.data(), bytes.size());
    return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
  }
  // The bytes of an integer as they are in memory.
  template <typename T>
  absl::Status Put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    return PutBytes(absl::string_view(raw, sizeof(T)));
  }
  // Everything is on stable storage afterwards. Call once, last.
  absl::Status Finish() {
    MT_RETURN_IF_ERROR(Flush());
    MT_RETURN_IF_ERROR(file_->Sync());
    return file_->Close();
  }

  // After Finish.
  uint64_t bytes() const { return bytes_; }
  std::string Hex() const { return digest_.Hex(); }

 private:
  static constexpr size_t kBufferBytes = 1 << 20;

  absl::Status Flush() {
    digest_.Update(buffer_.data(), buffer_.size());
    bytes_ += buffer_.size();
    MT_RETURN_IF_ERROR(file_->Append(buffer_));
    buffer_.clear();
    return absl::OkStatus();
  }

  const std::unique_ptr<WritableFile> file_;
  std::string buffer_;
  Xxh3Stream digest_;
  uint64_t bytes_ = 0;
};

}  // namespace mt
