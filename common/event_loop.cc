#include "common/event_loop.h"

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "common/check.h"

namespace mt {
namespace {

class ThreadEventLoop : public EventLoop {
 public:
  ThreadEventLoop(std::string name, Clock* clock)
      : clock_(clock), thread_([this, name = std::move(name)] { Run(name); }) {}

  ~ThreadEventLoop() override {
    MT_CHECK(!OnLoop()) << "an event loop cannot be destroyed by its own task";
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  void Post(Task task) override {
    {
      std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
  }

  TimerId After(absl::Duration delay, Task task) override {
    const absl::Duration due = clock_->Monotonic() + std::max(delay, absl::ZeroDuration());
    TimerId id;
    {
      std::lock_guard lock(mutex_);
      id = ++last_timer_;
      timers_.emplace(std::pair(due, id), std::move(task));
      due_.emplace(id, due);
    }
    wake_.notify_one();
    return id;
  }

  void Cancel(TimerId timer) override {
    std::lock_guard lock(mutex_);
    if (auto it = due_.find(timer); it != due_.end()) {
      timers_.erase({it->second, timer});
      due_.erase(it);
    }
  }

  bool OnLoop() const override { return std::this_thread::get_id() == thread_.get_id(); }
  Clock* clock() override { return clock_; }

 private:
  void Run(const std::string& name) {
    pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
    std::unique_lock lock(mutex_);
    while (true) {
      Task task;
      if (!timers_.empty() && timers_.begin()->first.first <= clock_->Monotonic()) {
        auto node = timers_.extract(timers_.begin());
        due_.erase(node.key().second);
        task = std::move(node.mapped());
      } else if (!tasks_.empty()) {
        task = std::move(tasks_.front());
        tasks_.pop_front();
      } else if (stopping_) {
        timers_.clear();
        return;
      } else if (timers_.empty()) {
        wake_.wait(lock);
        continue;
      } else {
        wake_.wait_for(
            lock, absl::ToChronoNanoseconds(timers_.begin()->first.first - clock_->Monotonic()));
        continue;
      }
      lock.unlock();
      task();
      task = nullptr;  // destroy captures outside the lock
      lock.lock();
    }
  }

  Clock* const clock_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> tasks_;
  std::map<std::pair<absl::Duration, TimerId>, Task> timers_;
  std::map<TimerId, absl::Duration> due_;
  TimerId last_timer_ = 0;
  bool stopping_ = false;
  std::thread thread_;  // last: starts when the rest exists
};

}  // namespace

std::unique_ptr<EventLoop> NewThreadEventLoop(std::string name, Clock* clock) {
  return std::make_unique<ThreadEventLoop>(std::move(name), clock);
}

}  // namespace mt
