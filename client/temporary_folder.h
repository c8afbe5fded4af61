// A folder that goes away with the command that made it.
#pragma once

#include <memory>
#include <string>

#include "common/status.h"

namespace mt::client {

class TemporaryFolder {
 public:
  // In TMPDIR, or /tmp; its name begins with `prefix`.
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> Create(const std::string& prefix);
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

}  // namespace mt::client
