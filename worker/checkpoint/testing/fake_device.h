// A backend table whose streams are queues: what is enqueued happens when nothing holds it back, in an order that is as bad
// as the contract allows. Memory is the host's. One at a time.
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "kernels/abi/mt_backend.h"

namespace mt {

class FakeDevice {
 public:
  FakeDevice() {
    device_ = this;
    table_.struct_size = sizeof(table_);
    table_.name = "fake";
    table_.error_message = [] { return device_->error.c_str(); };
    table_.copy_to_device = Copy;
    table_.copy_to_host = Copy;
    table_.allocate_host = [](size_t bytes, void** memory) -> int32_t {
      if (device_->fail == "allocate_host") return MT_ERROR_MEMORY;
      *memory = ::operator new(bytes);
      return MT_OK;
    };
    table_.free_host = [](void* memory) -> int32_t {
      ::operator delete(memory);
      return MT_OK;
    };
    table_.stream_create = [](mt_stream* stream) -> int32_t {
      *stream = reinterpret_cast<mt_stream>(++device_->num_streams_);
      return MT_OK;
    };
    table_.stream_destroy = [](mt_stream) -> int32_t { return MT_OK; };
    table_.stream_synchronize = [](mt_stream stream) -> int32_t {
      return device_->Until([=] { return device_->queues_[stream].empty(); });
    };
    table_.event_create = [](mt_event* event) -> int32_t {
      *event = reinterpret_cast<mt_event>(new Event);
      return MT_OK;
    };
    table_.event_destroy = [](mt_event event) -> int32_t {
      delete reinterpret_cast<Event*>(event);
      return MT_OK;
    };
    table_.event_record = Record;
    table_.event_wait = Wait;
    table_.event_synchronize = [](mt_event event) -> int32_t {
      if (device_->fail == "event_synchronize") return MT_ERROR_DEVICE;
      const auto point = reinterpret_cast<Event*>(event)->point;
      return point == nullptr ? MT_OK : device_->Until([=] { return point->passed; });
    };
    table_.event_milliseconds = [](mt_event first, mt_event last, float* milliseconds) -> int32_t {
      const std::lock_guard lock(device_->mutex_);
      const auto from = reinterpret_cast<Event*>(first)->point;
      const auto to = reinterpret_cast<Event*>(last)->point;
      if (from == nullptr || to == nullptr || !from->passed || !to->passed) return MT_ERROR_INVALID;
      *milliseconds = to->milliseconds - from->milliseconds;
      return MT_OK;
    };
  }
  const mt_backend* table() const { return &table_; }

  // Anything else that the device does: at its turn in the stream's queue.
  void Enqueue(mt_stream stream, std::function<void()> task) {
    const std::lock_guard lock(mutex_);
    queues_[stream].push_back({std::move(task), nullptr});
    if (!lazy) Pump();
  }
  // Streams other than the compute stream stand still while held; the compute stream likewise.
  void Hold(bool copies, bool compute) {
    const std::lock_guard lock(mutex_);
    hold_copies_ = copies;
    hold_compute_ = compute;
    Pump();
    changed_.notify_all();
  }
  int pending() {
    const std::lock_guard lock(mutex_);
    size_t count = 0;
    for (const auto& [stream, queue] : queues_) count += queue.size();
    return static_cast<int>(count);
  }

  std::string fail;  // the call that fails next and later
  std::string error = "it broke";
  bool lazy = false;       // work is done only when somebody waits for it
  int copies = 0;          // done
  float milliseconds = 0;  // the device's time now

 private:
  struct Point {
    bool passed = false;
    float milliseconds = 0;
  };
  struct Event {
    std::shared_ptr<Point> point;  // of the newest record
  };
  struct Task {
    std::function<void()> run;
    std::shared_ptr<Point> after;
  };

  static int32_t Copy(void* to, const void* from, size_t bytes, mt_stream stream) {
    if (device_->fail == "copy") return MT_ERROR_DEVICE;
    device_->Enqueue(stream, [=] {
      std::memcpy(to, from, bytes);
      ++device_->copies;
    });
    return MT_OK;
  }
  static int32_t Record(mt_event event, mt_stream stream) {
    const auto point = std::make_shared<Point>();
    {
      const std::lock_guard lock(device_->mutex_);
      reinterpret_cast<Event*>(event)->point = point;
    }
    device_->Enqueue(stream, [point] {
      point->passed = true;
      point->milliseconds = device_->milliseconds;
      device_->changed_.notify_all();
    });
    return MT_OK;
  }
  static int32_t Wait(mt_event event, mt_stream stream) {
    const std::lock_guard lock(device_->mutex_);
    device_->queues_[stream].push_back({nullptr, reinterpret_cast<Event*>(event)->point});
    return MT_OK;
  }

  // With the lock held. The compute stream goes first and as far as it can: whoever must wait for a copy has to say so.
  void Pump() {
    for (bool moved = true; moved;) {
      moved = false;
      for (auto& [stream, queue] : queues_) {
        if (stream == nullptr ? hold_compute_ : hold_copies_) continue;
        while (!queue.empty() && (queue.front().after == nullptr || queue.front().after->passed)) {
          const Task task = std::move(queue.front());
          queue.pop_front();
          if (task.run) task.run();
          moved = true;
        }
      }
    }
  }
  int32_t Until(const std::function<bool()>& done) {
    std::unique_lock lock(mutex_);
    Pump();
    changed_.wait(lock, [&] {
      Pump();
      return done();
    });
    return MT_OK;
  }

  inline static FakeDevice* device_ = nullptr;
  mt_backend table_ = {};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<mt_stream, std::deque<Task>> queues_;  // the null stream first
  intptr_t num_streams_ = 0;
  bool hold_copies_ = false, hold_compute_ = false;
};

}  // namespace mt
