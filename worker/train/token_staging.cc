#include "worker/train/token_staging.h"

#include "worker/comm/device_wait.h"

namespace mt {

absl::StatusOr<std::unique_ptr<TokenStaging>> TokenStaging::Create(
    const Backend& backend, int64_t rows, std::span<Communicator* const> groups) {
  auto make = [&]() -> absl::StatusOr<Buffer> {
    MT_ASSIGN_OR_RETURN(
        PinnedMemory memory,
        PinnedMemory::Create(backend, static_cast<size_t>(2 * rows) * sizeof(int32_t)));
    MT_ASSIGN_OR_RETURN(Event read, Event::Create(backend));
    return Buffer{std::move(memory), std::move(read)};
  };
  MT_ASSIGN_OR_RETURN(Buffer first, make());
  MT_ASSIGN_OR_RETURN(Buffer second, make());
  return std::unique_ptr<TokenStaging>(
      new TokenStaging(backend, rows, groups, std::move(first), std::move(second)));
}

absl::StatusOr<TokenStaging::Tokens> TokenStaging::Next() {
  current_ ^= 1;
  Buffer& buffer = buffers_[current_];
  if (buffer.sent) MT_RETURN_IF_ERROR(WaitForEvent(backend_.abi(), buffer.read.get(), groups_));
  buffer.sent = false;
  int32_t* const data = buffer.memory.as<int32_t>();
  return Tokens{.input_ids = data, .targets = data + rows_};
}

absl::Status TokenStaging::Send(int32_t* input_ids, int32_t* targets) {
  Buffer& buffer = buffers_[current_];
  const int32_t* const data = buffer.memory.as<int32_t>();
  const size_t bytes = static_cast<size_t>(rows_) * sizeof(int32_t);
  if (input_ids != nullptr) {
    MT_RETURN_IF_ERROR(backend_.ToStatus(
        backend_.abi().copy_to_device(input_ids, data, bytes, nullptr), "copying token ids"));
  }
  if (targets != nullptr) {
    MT_RETURN_IF_ERROR(backend_.ToStatus(
        backend_.abi().copy_to_device(targets, data + rows_, bytes, nullptr), "copying targets"));
  }
  buffer.sent = true;
  return buffer.read.Record();
}

}  // namespace mt
