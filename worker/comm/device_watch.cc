#include "worker/comm/device_watch.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

namespace mt {
namespace {

// A failure ends what this rank waits for within a second of it.
constexpr std::chrono::milliseconds kInterval(100);

}  // namespace

DeviceWatch::DeviceWatch(const DeviceAccess& device, bool thread) : device_(device) {
  if (!thread) return;
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "device-watch");
    std::unique_lock<std::mutex> lock(stop_mutex_);
    while (!stop_.wait_for(lock, kInterval, [this] { return stopping_; })) {
      lock.unlock();
      LookAtAll();
      lock.lock();
    }
  });
}

DeviceWatch::~DeviceWatch() {
  {
    const std::lock_guard<std::mutex> lock(stop_mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void DeviceWatch::LookAtAll() {
  const std::lock_guard<std::mutex> lock(list_mutex_);
  for (Watched* const watched : list_) watched->Look();
}

void DeviceWatch::Add(Watched* watched) {
  const std::lock_guard<std::mutex> lock(list_mutex_);
  list_.push_back(watched);
}

void DeviceWatch::Remove(Watched* watched) {
  const std::lock_guard<std::mutex> lock(list_mutex_);
  std::erase(list_, watched);
}

}  // namespace mt
