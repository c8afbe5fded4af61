#include "worker/train/token_staging.h"

#include <algorithm>

#include "worker/comm/device_wait.h"

namespace mt {

absl::StatusOr<std::unique_ptr<TokenStaging>> TokenStaging::Create(
    const Backend& backend, int64_t rows, const TokenRows& device,
    std::span<Communicator* const> groups) {
  const auto kinds = device.All();
  const int64_t count = std::count_if(kinds.begin(), kinds.end(), [](int32_t* p) { return p; });
  auto make = [&]() -> absl::StatusOr<Buffer> {
    // At least one, so that there is memory to speak of on a stage that takes nothing.
    MT_ASSIGN_OR_RETURN(
        PinnedMemory memory,
        PinnedMemory::Create(
            backend, static_cast<size_t>(std::max<int64_t>(count, 1) * rows) * sizeof(int32_t)));
    MT_ASSIGN_OR_RETURN(Event read, Event::Create(backend));
    int32_t* next = memory.as<int32_t>();
    const auto take = [&](const int32_t* wanted) -> int32_t* {
      return wanted == nullptr ? nullptr : std::exchange(next, next + rows);
    };
    TokenRows host;
    host.input_ids = take(device.input_ids);
    host.targets = take(device.targets);
    host.next_tokens = take(device.next_tokens);
    host.mtp_targets = take(device.mtp_targets);
    host.document_start = take(device.document_start);
    host.positions = take(device.positions);
    return Buffer{std::move(memory), host, std::move(read)};
  };
  MT_ASSIGN_OR_RETURN(Buffer first, make());
  MT_ASSIGN_OR_RETURN(Buffer second, make());
  return std::unique_ptr<TokenStaging>(
      new TokenStaging(backend, rows, groups, std::move(first), std::move(second)));
}

absl::StatusOr<TokenRows> TokenStaging::Next() {
  current_ ^= 1;
  Buffer& buffer = buffers_[current_];
  if (buffer.sent) MT_RETURN_IF_ERROR(WaitForEvent(backend_.abi(), buffer.read.get(), groups_));
  buffer.sent = false;
  return buffer.host;
}

absl::Status TokenStaging::Send(const TokenRows& device) {
  Buffer& buffer = buffers_[current_];
  const auto sources = buffer.host.All(), destinations = device.All();
  for (size_t kind = 0; kind < sources.size(); ++kind) {
    if (sources[kind] == nullptr || destinations[kind] == nullptr) continue;
    MT_RETURN_IF_ERROR(backend_.ToStatus(
        backend_.abi().copy_to_device(destinations[kind], sources[kind],
                                      static_cast<size_t>(rows_) * sizeof(int32_t), nullptr),
        "copying tokens"));
  }
  buffer.sent = true;
  return buffer.read.Record();
}

}  // namespace mt
