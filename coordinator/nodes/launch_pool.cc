#include "coordinator/nodes/launch_pool.h"

#include <utility>

namespace mt {

LaunchPool::LaunchPool(EventLoop* loop, int num_threads) : loop_(loop) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

LaunchPool::~LaunchPool() {
  Cancel();
  for (std::thread& thread : threads_) thread.join();
}

void LaunchPool::Cancel() {
  *alive_ = false;
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  tasks_.clear();
}

void LaunchPool::Run(const std::string& node, std::function<absl::Status()> work,
                     NodeLauncher::Done done) {
  absl::MutexLock lock(&mutex_);
  if (!stopping_) tasks_.push_back({node, std::move(work), std::move(done)});
}

void LaunchPool::Work() {
  for (;;) {
    Task task;
    {
      absl::MutexLock lock(&mutex_);
      auto next = tasks_.end();
      const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        if (stopping_) return true;
        for (next = tasks_.begin(); next != tasks_.end(); ++next) {
          if (busy_.find(next->node) == busy_.end()) return true;
        }
        return false;
      };
      mutex_.Await(absl::Condition(&ready));
      if (stopping_) return;
      task = std::move(*next);
      tasks_.erase(next);
      busy_[task.node] = true;
    }
    absl::Status status = task.work();
    loop_->Post(
        [alive = alive_, done = std::move(task.done), status = std::move(status)]() mutable {
          if (*alive) done(std::move(status));
        });
    absl::MutexLock lock(&mutex_);
    busy_.erase(task.node);
  }
}

}  // namespace mt
