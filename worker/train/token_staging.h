// Token ids on their way to the device: two pinned buffers take turns, so that the host prepares a
// micro-batch while the device still reads the one before.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "worker/comm/communicator.h"
#include "worker/train/device_objects.h"

namespace mt {

class TokenStaging {
 public:
  // `rows` token ids and as many targets per micro-batch. What is on the device may depend on
  // `groups` (null ones are skipped): if one fails, so does Next.
  static absl::StatusOr<std::unique_ptr<TokenStaging>> Create(
      const Backend& backend, int64_t rows, std::span<Communicator* const> groups);

  struct Tokens {
    int32_t* input_ids;  // (rows)
    int32_t* targets;    // (rows)
  };
  // Host memory to be filled with the next micro-batch. Waits until the device has read what was
  // sent from it two micro-batches ago.
  absl::StatusOr<Tokens> Next();
  // Enqueues the copies of what Next gave; a null destination takes nothing.
  absl::Status Send(int32_t* input_ids, int32_t* targets);

 private:
  struct Buffer {
    PinnedMemory memory;
    Event read;         // behind the last copies from here
    bool sent = false;  // `read` has been recorded
  };
  TokenStaging(const Backend& backend, int64_t rows, std::span<Communicator* const> groups,
               Buffer first, Buffer second)
      : backend_(backend),
        rows_(rows),
        groups_(groups.begin(), groups.end()),
        buffers_{std::move(first), std::move(second)} {}

  const Backend& backend_;
  const int64_t rows_;
  const std::vector<Communicator*> groups_;
  std::array<Buffer, 2> buffers_;
  size_t current_ = 1;
};

}  // namespace mt
