#include "worker/checkpoint/snapshot_buffer.h"

#include <algorithm>
#include <cstring>

#include "worker/backend/abi_status.h"

namespace mt {
namespace {

class HostBuffer : public SnapshotBuffer {
 public:
  explicit HostBuffer(size_t bytes) : memory_(std::make_unique<char[]>(bytes)) {
    // Pages are there before the first snapshot, which must not wait for them.
    std::memset(memory_.get(), 0, bytes);
  }
  absl::Status Begin(const std::vector<Piece>& pieces) override {
    for (const Piece& piece : pieces) {
      if (piece.bytes > 0) std::memcpy(memory_.get() + piece.at, piece.from, piece.bytes);
    }
    return absl::OkStatus();
  }
  absl::Status Finish() override { return absl::OkStatus(); }
  double UpdateStallSeconds() override { return 0; }
  const char* data() const override { return memory_.get(); }

 private:
  const std::unique_ptr<char[]> memory_;
};

class DeviceBuffer : public SnapshotBuffer {
 public:
  DeviceBuffer(const mt_backend* device, BeforeNextUpdate before_next_update)
      : device_(device), before_next_update_(std::move(before_next_update)) {}
  ~DeviceBuffer() override {
    if (stream_ != nullptr) {
      (void)device_->stream_synchronize(stream_);
      (void)device_->stream_destroy(stream_);
    }
    DestroyEvents();
    if (memory_ != nullptr) (void)device_->free_host(memory_);
  }

  absl::Status Create(size_t bytes) {
    void* memory = nullptr;
    MT_RETURN_IF_ERROR(Check(device_->allocate_host(std::max<size_t>(bytes, 1), &memory),
                             absl::StrCat("host memory for snapshots, ", bytes, " bytes")));
    memory_ = static_cast<char*>(memory);
    return Check(device_->stream_create(&stream_), "the stream of snapshots");
  }

  absl::Status Begin(const std::vector<Piece>& pieces) override {
    // New events for every snapshot: one that was never recorded is told from one of the snapshot before.
    DestroyEvents();
    for (mt_event* event : {&ready_, &copied_, &reached_})
      MT_RETURN_IF_ERROR(Check(device_->event_create(event), "an event of a snapshot"));
    MT_RETURN_IF_ERROR(Check(device_->event_record(ready_, nullptr), "the state's event"));
    MT_RETURN_IF_ERROR(Check(device_->event_wait(ready_, stream_), "waiting for the state"));
    for (const Piece& piece : pieces) {
      if (piece.bytes == 0) continue;
      MT_RETURN_IF_ERROR(Check(
          device_->copy_to_host(memory_ + piece.at, piece.from, piece.bytes, stream_), "the copy"));
    }
    MT_RETURN_IF_ERROR(Check(device_->event_record(copied_, stream_), "the copy's event"));
    return before_next_update_(copied_, reached_);
  }

  absl::Status Finish() override {
    return Check(device_->event_synchronize(copied_), "waiting for the copy");
  }

  double UpdateStallSeconds() override {
    // No figure: the update has not come so far, so that it finds the copy done. Negative: it came later.
    float milliseconds = 0;
    if (device_->event_milliseconds(reached_, copied_, &milliseconds) != MT_OK) return 0;
    return std::max(0.0, milliseconds * 1e-3);
  }

  const char* data() const override { return memory_; }

 private:
  absl::Status Check(int32_t code, absl::string_view what) const {
    if (code == MT_OK) return absl::OkStatus();
    return AbiStatus(
        code, absl::StrCat(what, " on backend ", device_->name, ": ", device_->error_message()));
  }
  void DestroyEvents() {
    for (mt_event* event : {&ready_, &copied_, &reached_}) {
      if (*event != nullptr) (void)device_->event_destroy(*event);
      *event = nullptr;
    }
  }

  const mt_backend* const device_;
  const BeforeNextUpdate before_next_update_;
  char* memory_ = nullptr;
  mt_stream stream_ = nullptr;
  mt_event ready_ = nullptr, copied_ = nullptr, reached_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotBuffer>> NewSnapshotBuffer(
    size_t bytes, const mt_backend* device, BeforeNextUpdate before_next_update) {
  if (device == nullptr) return std::make_unique<HostBuffer>(bytes);
  if (!before_next_update)
    return absl::InvalidArgumentError("snapshots of a device's state need before_next_update");
  auto buffer = std::make_unique<DeviceBuffer>(device, std::move(before_next_update));
  MT_RETURN_IF_ERROR(buffer->Create(bytes));
  return buffer;
}

}  // namespace mt
