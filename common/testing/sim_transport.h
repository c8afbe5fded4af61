// The worker stream between simulated processes: latency, partitions, broken connections, dead ends. Messages of one
// connection arrive in order, once, until it breaks; what was on its way when it broke is lost.
//
// A partition is silent (messages wait; the connection breaks at both ends after `break_after`, as TCP keepalive would);
// Break is loud (both ends learn of it after the latency). Deterministic by the Random given.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "common/random.h"
#include "common/testing/sim_event_loop.h"
#include "common/transport.h"

namespace mt {

class SimNetwork {
 public:
  struct Options {
    absl::Duration min_latency = absl::Milliseconds(1);
    absl::Duration max_latency = absl::Milliseconds(20);
    absl::Duration break_after = absl::Seconds(20);
  };
  SimNetwork(SimScheduler* scheduler, Random* random);
  SimNetwork(SimScheduler* scheduler, Random* random, Options options);
  ~SimNetwork();

  // The coordinator process is up and listens (or is gone: null; its streams break as a dead process's do).
  void SetServer(EventLoop* loop, WorkerStreamHandler* handler);
  // For a worker process on `node`; the dialer must die with its loop.
  std::unique_ptr<CoordinatorDialer> NewDialer(const std::string& node, EventLoop* loop);

  void SetPartitioned(const std::string& node, bool partitioned);
  bool IsPartitioned(const std::string& node) const { return partitioned_.contains(node); }
  // Breaks the node's connections, loudly.
  void Break(const std::string& node, absl::Status reason);
  // The node's process died: the coordinator's side sees a break.
  void WorkerDied(const std::string& node) {
    Break(node, absl::UnavailableError("connection reset by peer"));
  }

  struct Connection;

 private:
  friend class SimDialer;
  absl::Duration Latency();
  void Deliver(const std::shared_ptr<Connection>& connection, bool to_server, EventLoop::Task task);
  void Release(const std::shared_ptr<Connection>& connection);
  void CloseWorkerEnd(const std::shared_ptr<Connection>& connection, absl::Status reason);
  void CloseServerEnd(const std::shared_ptr<Connection>& connection, absl::Status reason);

  SimScheduler* const scheduler_;
  Random* const random_;
  const Options options_;
  EventLoop* server_loop_ = nullptr;
  WorkerStreamHandler* handler_ = nullptr;
  uint64_t server_life_ = 0;
  std::set<std::string> partitioned_;
  // In order of creation: an order by address would make runs of one seed differ.
  struct ByNumber {
    bool operator()(const std::shared_ptr<Connection>& a,
                    const std::shared_ptr<Connection>& b) const;
  };
  uint64_t last_connection_ = 0;
  std::set<std::shared_ptr<Connection>, ByNumber> connections_;
};

}  // namespace mt
