// The watchdog of a rank's device groups: one thread that looks at all of them several times a second. Calls on a device return
// before anything is done, so somebody else must notice that a peer has failed or that a collective does not end.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "worker/comm/device_lane.h"

namespace mt {

class DeviceWatch {
 public:
  class Watched {
   public:
    virtual ~Watched() = default;
    virtual void Look() = 0;  // from any thread
  };

  // `thread` false: nobody looks but LookAtAll's caller (tests).
  explicit DeviceWatch(const DeviceAccess& device, bool thread = true);
  ~DeviceWatch();
  DeviceWatch(const DeviceWatch&) = delete;
  DeviceWatch& operator=(const DeviceWatch&) = delete;

  const DeviceAccess& device() const { return device_; }
  void LookAtAll();

  // After Remove has returned nobody is inside `watched->Look()`.
  void Add(Watched* watched);
  void Remove(Watched* watched);

 private:
  const DeviceAccess device_;
  std::mutex list_mutex_;  // held while looking
  std::vector<Watched*> list_;
  std::mutex stop_mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace mt
