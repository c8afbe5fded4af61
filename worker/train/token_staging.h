// Numbers of tokens on their way to the device: two pinned buffers take turns, so that the host prepares a
// micro-batch while the device still reads the one before.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "worker/comm/communicator.h"
#include "worker/train/device_objects.h"

namespace mt {

// One int32 per row of a micro-batch, (T, B), of each kind that a stage has; null where it has not. On the host or on the device.
struct TokenRows {
  int32_t* input_ids = nullptr;
  int32_t* targets = nullptr;         // negative: no loss
  int32_t* next_tokens = nullptr;     // what `targets` is before labels are masked
  int32_t* mtp_targets = nullptr;     // the tokens after those; negative: no loss
  int32_t* document_start = nullptr;  // mt_attention_args::document_start
  int32_t* positions = nullptr;

  std::array<int32_t*, 6> All() const {
    return {input_ids, targets, next_tokens, mtp_targets, document_start, positions};
  }
  bool Any() const {
    const auto all = All();
    return std::any_of(all.begin(), all.end(), [](const int32_t* rows) { return rows; });
  }
};

class TokenStaging {
 public:
  // Of `rows` rows and the kinds that `device` has. What is on the device may depend on `groups` (null ones are skipped): if one
  // fails, so does Next.
  static absl::StatusOr<std::unique_ptr<TokenStaging>> Create(
      const Backend& backend, int64_t rows, const TokenRows& device,
      std::span<Communicator* const> groups);

  // Host memory to be filled with the next micro-batch, of the kinds of Create. Waits until the device has read what was
  // sent from it two micro-batches ago.
  absl::StatusOr<TokenRows> Next();
  // Enqueues the copies of what Next gave to `device`, which has the kinds of Create; a null destination takes nothing.
  absl::Status Send(const TokenRows& device);

 private:
  struct Buffer {
    PinnedMemory memory;
    TokenRows host;
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
