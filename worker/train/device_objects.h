// Owners of what a backend hands out besides device memory: events, and host memory that copies do
// not have to stop for. On backends in host memory both are next to nothing.
#pragma once

#include <utility>

#include "common/status.h"
#include "worker/backend/backend.h"

namespace mt {

class Event {
 public:
  static absl::StatusOr<Event> Create(const Backend& backend) {
    mt_event event = nullptr;
    MT_RETURN_IF_ERROR(backend.ToStatus(backend.abi().event_create(&event), "making an event"));
    return Event(&backend, event);
  }
  Event(Event&& other) noexcept : backend_(other.backend_), event_(other.event_) {
    other.backend_ = nullptr;
  }
  Event& operator=(Event&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event() {
    if (backend_ != nullptr) backend_->abi().event_destroy(event_);
  }

  mt_event get() const { return event_; }
  // Behind what is on the compute stream so far.
  absl::Status Record() const {
    return backend_->ToStatus(backend_->abi().event_record(event_, nullptr), "recording an event");
  }

 private:
  Event(const Backend* backend, mt_event event) : backend_(backend), event_(event) {}
  const Backend* backend_;  // null: moved from
  mt_event event_;
};

class PinnedMemory {
 public:
  static absl::StatusOr<PinnedMemory> Create(const Backend& backend, size_t bytes) {
    void* data = nullptr;
    MT_RETURN_IF_ERROR(
        backend.ToStatus(backend.abi().allocate_host(bytes, &data), "allocating pinned memory"));
    return PinnedMemory(&backend, data);
  }
  PinnedMemory(PinnedMemory&& other) noexcept : backend_(other.backend_), data_(other.data_) {
    other.backend_ = nullptr;
  }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~PinnedMemory() {
    if (backend_ != nullptr) backend_->abi().free_host(data_);
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  PinnedMemory(const Backend* backend, void* data) : backend_(backend), data_(data) {}
  const Backend* backend_;  // null: moved from
  void* data_;
};

}  // namespace mt
