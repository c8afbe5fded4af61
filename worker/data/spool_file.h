// A file that is written at its end only, and gone on with after a kill: everything of a dataset that is not shown yet.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/env.h"
#include "common/hash.h"
#include "common/status.h"

namespace mt {

// One thread's.
class SpoolFile {
 public:
  // All that was appended before a Sync.
  struct State {
    uint64_t bytes = 0;
    std::string xxh3;
  };

  // Empty, or, with `state`, what a spool held then: whatever was written since goes. DATA_LOSS: the file is not what it was.
  static absl::StatusOr<std::unique_ptr<SpoolFile>> Open(Env* env, const std::string& path,
                                                         const State* state = nullptr);

  absl::Status Append(absl::string_view data);
  // On stable storage afterwards, once the folder is synced.
  absl::StatusOr<State> Sync();
  // Sync and Close; call nothing else then.
  absl::StatusOr<State> Finish();

 private:
  SpoolFile() = default;
  absl::Status Flush();

  std::unique_ptr<WritableFile> file_;
  std::string buffer_;
  uint64_t bytes_ = 0;
  Xxh3Stream digest_;
};

}  // namespace mt
