#include "worker/comm/device_link.h"

namespace mt {
namespace {

// Enqueues a copy within device memory on the compute stream.
absl::Status CopyOnDevice(const mt_backend& backend, const void* source, void* destination,
                          int64_t bytes) {
  // A copy without a cast carries bits: as wide elements as the size allows.
  mt_copy_args copy{};
  copy.struct_size = sizeof(copy);
  const mt_dtype dtype = bytes % 4 == 0 ? MT_F32 : MT_BF16;
  const int64_t element = dtype == MT_F32 ? 4 : 2;
  if (bytes % element != 0) {
    return absl::UnimplementedError(
        absl::StrCat("a message of ", bytes, " bytes between devices: the size must be even"));
  }
  copy.source_dtype = copy.destination_dtype = dtype;
  copy.source = source;
  copy.destination = destination;
  copy.count = bytes / element;
  return DeviceStatus(backend, backend.run(MT_OP_COPY, &copy, nullptr), "copying a message");
}

}  // namespace

DeviceLink::~DeviceLink() {
  lane_.reset();  // first: it ends what still sends from the slots
  for (const Slot& slot : slots_) {
    if (slot.data != nullptr) backend_.free(slot.data);
    if (slot.taken != nullptr) backend_.event_destroy(slot.taken);
  }
  for (void* const data : outgrown_) backend_.free(data);
}

absl::Status DeviceLink::Prepare(Slot& slot, int64_t bytes) {
  if (slot.taken == nullptr) {
    MT_RETURN_IF_ERROR(
        DeviceStatus(backend_, backend_.event_create(&slot.taken), "an event for messages"));
  } else {
    MT_RETURN_IF_ERROR(
        DeviceStatus(backend_, backend_.event_wait(slot.taken, nullptr), "waiting for an event"));
  }
  if (slot.capacity >= bytes) return absl::OkStatus();
  if (slot.data != nullptr) outgrown_.push_back(slot.data);
  slot = {.taken = slot.taken};
  MT_RETURN_IF_ERROR(DeviceStatus(backend_,
                                  backend_.allocate(static_cast<size_t>(bytes), &slot.data),
                                  absl::StrCat(bytes, " bytes for a message")));
  slot.capacity = bytes;
  return absl::OkStatus();
}

absl::Status DeviceLink::Send(const CommunicatorCall& call, const void* data, int64_t bytes) {
  Slot& slot = slots_[sent_++ % Communicator::kSendAhead];
  MT_RETURN_IF_ERROR(Prepare(slot, bytes));
  MT_RETURN_IF_ERROR(CopyOnDevice(backend_, data, slot.data, bytes));
  MT_RETURN_IF_ERROR(lane_->Enqueue(
      call,
      [&](mt_communicator communicator, mt_stream stream) {
        return library_.send(communicator, slot.data, bytes, /*peer=*/1, stream);
      },
      /*compute_waits=*/false));
  return DeviceStatus(backend_, backend_.event_record(slot.taken, lane_->stream()),
                      "recording an event");
}

absl::Status DeviceLink::Receive(const CommunicatorCall& call, void* data, int64_t bytes) {
  return lane_->Enqueue(
      call,
      [&](mt_communicator communicator, mt_stream stream) {
        return library_.receive(communicator, data, bytes, /*peer=*/0, stream);
      },
      /*compute_waits=*/true);
}

}  // namespace mt
