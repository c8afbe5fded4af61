#include "common/testing/sim_event_loop.h"

#include <algorithm>

#include "common/check.h"

namespace mt {

SimScheduler::SimScheduler() = default;
SimScheduler::~SimScheduler() = default;

uint64_t SimScheduler::Add(absl::Duration time, SimEventLoop* owner, EventLoop::Task task) {
  const Key key(std::max(time, now_), ++last_id_);
  queue_.emplace(key, Entry{owner, std::move(task)});
  due_.emplace(key.second, key.first);
  if (owner != nullptr) owner->keys_.insert(key);
  return key.second;
}

uint64_t SimScheduler::At(absl::Duration time, EventLoop::Task task) {
  return Add(time, nullptr, std::move(task));
}

void SimScheduler::Cancel(uint64_t id) {
  const auto it = due_.find(id);
  if (it == due_.end()) return;
  const Key key(it->second, id);
  const auto entry = queue_.find(key);
  if (entry->second.owner != nullptr) entry->second.owner->keys_.erase(key);
  queue_.erase(entry);
  due_.erase(it);
}

bool SimScheduler::Step() {
  if (queue_.empty()) return false;
  auto node = queue_.extract(queue_.begin());
  due_.erase(node.key().second);
  now_ = std::max(now_, node.key().first);
  SimEventLoop* owner = node.mapped().owner;
  ++steps_;
  if (owner == nullptr) {
    node.mapped().task();
    return true;
  }
  owner->keys_.erase(node.key());
  if (owner->stopped_) {
    owner->held_.emplace_back(node.key().second, std::move(node.mapped().task));
    return true;
  }
  MT_CHECK(!owner->running_);
  owner->running_ = true;
  node.mapped().task();
  // A task may destroy its own process only through the scheduler (At), so the owner is alive here.
  owner->running_ = false;
  return true;
}

void SimScheduler::RunUntil(absl::Duration time) {
  while (!queue_.empty() && queue_.begin()->first.first <= time) Step();
  now_ = std::max(now_, time);
}

bool SimScheduler::RunUntil(const std::function<bool()>& done, absl::Duration limit) {
  while (!done()) {
    if (queue_.empty() || queue_.begin()->first.first > limit) return false;
    Step();
  }
  return true;
}

SimEventLoop::SimEventLoop(SimScheduler* scheduler) : scheduler_(scheduler), clock_(scheduler) {}

SimEventLoop::~SimEventLoop() {
  MT_CHECK(!running_)
      << "a simulated process cannot be destroyed by its own task; use SimScheduler::At";
  // Captures may cancel timers or post as they die: take them out first.
  while (!keys_.empty()) {
    const SimScheduler::Key key = *keys_.begin();
    keys_.erase(keys_.begin());
    scheduler_->due_.erase(key.second);
    const auto node = scheduler_->queue_.extract(key);
  }
}

void SimEventLoop::Post(Task task) { scheduler_->Add(scheduler_->now_, this, std::move(task)); }

EventLoop::TimerId SimEventLoop::After(absl::Duration delay, Task task) {
  return scheduler_->Add(scheduler_->now_ + std::max(delay, absl::ZeroDuration()), this,
                         std::move(task));
}

void SimEventLoop::Cancel(TimerId timer) {
  scheduler_->Cancel(timer);
  std::erase_if(held_, [&](const auto& entry) { return entry.first == timer; });
}

bool SimEventLoop::OnLoop() const { return running_; }

void SimEventLoop::SetStopped(bool stopped) {
  stopped_ = stopped;
  if (stopped) return;
  auto held = std::move(held_);
  held_.clear();
  for (auto& [id, task] : held) Post(std::move(task));
}

}  // namespace mt
