// The coordinator's end of one worker's stream, in memory: answers registrations and rendezvous, acknowledges and records events.
// Everything happens on the agent's loop; WaitFor is for tests whose loop is a thread.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/event_loop.h"
#include "common/transport.h"

namespace mt {

class FakeCoordinator : public CoordinatorDialer {
 public:
  explicit FakeCoordinator(EventLoop* loop) : loop_(loop) {}

  std::unique_ptr<CoordinatorConnection> Dial(
      std::function<void(v1::CoordinatorMessage)> on_message,
      std::function<void(absl::Status)> on_closed) override {
    ++dials;
    auto line = std::make_shared<Line>();
    line->on_message = std::move(on_message);
    line->on_closed = std::move(on_closed);
    if (up) {
      line_ = line;
    } else {
      loop_->Post([line] { line->Close(absl::UnavailableError("connection refused")); });
    }
    return std::make_unique<Connection>(this, line);
  }

  // On the loop.
  void Send(v1::CoordinatorMessage message) {
    message.set_epoch(epoch);
    if (line_ != nullptr && line_->open) line_->on_message(std::move(message));
  }
  void Break(absl::Status reason) {
    registered = false;
    if (const auto line = std::move(line_)) line->Close(std::move(reason));
  }

  // For another thread than the loop's.
  bool WaitFor(std::function<bool()> condition,
               std::chrono::seconds bound = std::chrono::seconds(120)) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, bound, condition);
  }

  std::vector<v1::WorkerEvent> EventsOf(v1::WorkerEvent::BodyCase kind) const {
    std::vector<v1::WorkerEvent> found;
    for (const auto& event : events) {
      if (event.body_case() == kind) found.push_back(event);
    }
    return found;
  }

  // What the test sets.
  bool up = true;
  bool acknowledge = true;
  bool agree = true;  // a node's data is that of all others: its ranks are launched when it tells
  int64_t epoch = 1;
  int64_t acknowledged_sequence = 0;
  std::vector<v1::RunningRank> keep;
  bool keep_all = true;  // answer a registration with what it says is running

  // What the test reads; guarded by `mutex` when the loop is a thread.
  std::mutex mutex;
  std::condition_variable changed;
  int dials = 0;
  bool registered = false;
  std::vector<v1::Register> registrations;
  std::vector<std::string> incarnations;
  std::vector<v1::WorkerEvent> events;
  std::vector<v1::CommandResult> results;
  int heartbeats = 0;
  v1::Heartbeat last_heartbeat;
  std::map<std::string, std::string> values;  // rendezvous

 private:
  struct Line {
    bool open = true;
    std::function<void(v1::CoordinatorMessage)> on_message;
    std::function<void(absl::Status)> on_closed;
    void Close(absl::Status reason) {
      if (!std::exchange(open, false)) return;
      on_closed(std::move(reason));
    }
  };
  class Connection : public CoordinatorConnection {
   public:
    Connection(FakeCoordinator* coordinator, std::shared_ptr<Line> line)
        : coordinator_(coordinator), line_(std::move(line)) {}
    ~Connection() override { line_->open = false; }
    void Send(v1::WorkerMessage message) override {
      coordinator_->loop_->Post(
          [coordinator = coordinator_, line = line_, message = std::move(message)] {
            if (line->open && coordinator->line_ == line) coordinator->OnMessage(message);
          });
    }

   private:
    FakeCoordinator* const coordinator_;
    const std::shared_ptr<Line> line_;
  };

  void OnMessage(const v1::WorkerMessage& message) {
    v1::CoordinatorMessage answer, launch;
    {
      const std::lock_guard lock(mutex);
      switch (message.body_case()) {
        case v1::WorkerMessage::kRegister: {
          registered = true;
          registrations.push_back(message.register_());
          incarnations.push_back(message.incarnation());
          auto* body = answer.mutable_registered();
          body->mutable_heartbeat_interval()->set_seconds(1);
          body->set_acknowledged_sequence(acknowledged_sequence);
          if (keep_all) *body->mutable_keep() = message.register_().running();
          for (const auto& rank : keep) *body->add_keep() = rank;
          break;
        }
        case v1::WorkerMessage::kEvent:
          events.push_back(message.event());
          if (agree && message.event().has_data_checked()) {
            launch.mutable_launch_ranks()->set_job_id(message.event().job_id());
            launch.mutable_launch_ranks()->set_generation(message.event().generation());
          }
          if (acknowledge) answer.mutable_acknowledge()->set_sequence(message.event().sequence());
          break;
        case v1::WorkerMessage::kHeartbeat:
          ++heartbeats;
          last_heartbeat = message.heartbeat();
          break;
        case v1::WorkerMessage::kCommandResult:
          results.push_back(message.command_result());
          break;
        case v1::WorkerMessage::kRendezvousPut:
          values[message.rendezvous_put().key()] = message.rendezvous_put().value();
          break;
        case v1::WorkerMessage::kRendezvousGet:
          if (const auto it = values.find(message.rendezvous_get().key()); it != values.end()) {
            auto* value = answer.mutable_rendezvous_value();
            value->set_job_id(message.rendezvous_get().job_id());
            value->set_generation(message.rendezvous_get().generation());
            value->set_key(it->first);
            value->set_value(it->second);
          }
          break;
        default:
          break;
      }
    }
    changed.notify_all();
    if (answer.body_case() != v1::CoordinatorMessage::BODY_NOT_SET) Send(std::move(answer));
    if (launch.has_launch_ranks()) Send(std::move(launch));
  }

  EventLoop* const loop_;
  std::shared_ptr<Line> line_;
};

}  // namespace mt
