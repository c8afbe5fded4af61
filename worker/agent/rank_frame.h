// Messages on the socket between daemon and rank: u32 little-endian length, then the serialized
// message, at most 16 MiB.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include <google/protobuf/message_lite.h>

#include "common/status.h"

namespace mt {

inline constexpr uint32_t kMaxRankFrameBytes = 256 << 20;  // a rank's part of such a manifest
// A larger manifest of the checkpoint to restore goes by a file (RankStart.restore_file); those of large mixtures of experts have
// tens of MiB, and every rank of a node reads the same one.
inline constexpr size_t kMaxManifestInFrameBytes = 1 << 20;

// RESOURCE_EXHAUSTED if it is too large.
inline absl::Status AppendFrame(const google::protobuf::MessageLite& message, std::string* out) {
  const size_t size = message.ByteSizeLong();
  if (size > kMaxRankFrameBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a message of ", size, " bytes is over the limit of ", kMaxRankFrameBytes,
                     " bytes between daemon and rank"));
  }
  const uint32_t length = size;
  out->append(reinterpret_cast<const char*>(&length), 4);
  message.AppendToString(out);
  return absl::OkStatus();
}

// Takes one whole message off the front of `buffer`. True: there was one. INVALID_ARGUMENT: not a
// message.
template <typename Message>
absl::StatusOr<bool> TakeFrame(std::string* buffer, Message* message) {
  if (buffer->size() < 4) return false;
  uint32_t length;
  std::memcpy(&length, buffer->data(), 4);
  if (length > kMaxRankFrameBytes)
    return absl::InvalidArgumentError(absl::StrCat("a frame of ", length, " bytes"));
  if (buffer->size() - 4 < length) return false;
  if (!message->ParseFromArray(buffer->data() + 4, length))
    return absl::InvalidArgumentError("a frame that does not parse");
  buffer->erase(0, 4 + length);
  return true;
}

}  // namespace mt
