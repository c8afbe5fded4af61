// A whole file in memory, read only. Pages are shared by all who map it. A file that is cut off while it is mapped ends the process
// (SIGBUS) where it is read behind its new end: map what is only ever replaced, not what is written to.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "common/status.h"

namespace mt {

class MappedFile {
 public:
  // NOT_FOUND; INVALID_ARGUMENT: not a regular file; FAILED_PRECONDITION: cannot be opened. An empty file has no bytes.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const char> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const char> bytes) : bytes_(bytes) {}
  const std::span<const char> bytes_;
};

}  // namespace mt
