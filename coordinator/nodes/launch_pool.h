// What both launchers share: blocking work per node on a few threads, answers on the coordinator's
// loop, nothing after the launcher is gone. Work for one node is never done twice at a time: Launch
// and Stop of a node run in the order of the calls.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/event_loop.h"
#include "coordinator/nodes/launcher.h"

namespace mt {

class LaunchPool {
 public:
  LaunchPool(EventLoop* loop, int num_threads);
  ~LaunchPool();  // joins; make running work fail first
  LaunchPool(const LaunchPool&) = delete;

  void Run(const std::string& node, std::function<absl::Status()> work, NodeLauncher::Done done);
  // Nothing that waits is begun any more, and no `done` runs.
  void Cancel();

 private:
  struct Task {
    std::string node;
    std::function<absl::Status()> work;
    NodeLauncher::Done done;
  };
  void Work();

  EventLoop* const loop_;
  const std::shared_ptr<bool> alive_ =
      std::make_shared<bool>(true);  // read and written on the loop
  absl::Mutex mutex_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, bool> busy_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace mt
