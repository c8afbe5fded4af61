#include "common/testing/sim_transport.h"

#include <deque>

namespace mt {

// One connection: two ends, each alive or not, and what waits while its node is partitioned. The ends know each other only
// through tasks of the scheduler, never by a direct call.
struct SimNetwork::Connection : std::enable_shared_from_this<SimNetwork::Connection> {
  SimNetwork* network = nullptr;
  uint64_t number = 0;
  std::string node;
  // Worker end.
  EventLoop* worker_loop = nullptr;
  std::function<void(v1::CoordinatorMessage)> on_message;
  std::function<void(absl::Status)> on_closed;
  bool worker_open = false;
  // Server end.
  std::shared_ptr<WorkerStream> stream;  // made when the connection arrives
  uint64_t server_life = 0;
  bool server_open = false, server_delivered = false;
  // Order: a message never overtakes one sent before it in the same direction.
  absl::Duration last_to_server, last_to_worker;
  std::deque<std::pair<bool, EventLoop::Task>>
      held;  // sent into a partition: (to server, delivery)
};

namespace {

class SimStream : public WorkerStream {
 public:
  using SendFunction = std::function<void(v1::CoordinatorMessage)>;
  using CloseFunction = std::function<void(absl::Status)>;
  SimStream(std::string node, SendFunction send, CloseFunction close)
      : node_(std::move(node)), send_(std::move(send)), close_(std::move(close)) {}
  void Send(v1::CoordinatorMessage message) override { send_(std::move(message)); }
  void Close(absl::Status reason) override { close_(std::move(reason)); }
  std::string AuthenticatedNode() const override { return node_; }

 private:
  const std::string node_;
  SendFunction send_;
  CloseFunction close_;
};

}  // namespace

SimNetwork::SimNetwork(SimScheduler* scheduler, Random* random)
    : SimNetwork(scheduler, random, Options()) {}
SimNetwork::SimNetwork(SimScheduler* scheduler, Random* random, Options options)
    : scheduler_(scheduler), random_(random), options_(options) {}
SimNetwork::~SimNetwork() = default;

bool SimNetwork::ByNumber::operator()(const std::shared_ptr<Connection>& a,
                                      const std::shared_ptr<Connection>& b) const {
  return a->number < b->number;
}

absl::Duration SimNetwork::Latency() {
  return options_.min_latency + (options_.max_latency - options_.min_latency) * random_->Uniform();
}

void SimNetwork::Deliver(const std::shared_ptr<Connection>& connection, bool to_server,
                         EventLoop::Task task) {
  if (partitioned_.contains(connection->node)) {
    connection->held.emplace_back(to_server, std::move(task));
    return;
  }
  absl::Duration& last = to_server ? connection->last_to_server : connection->last_to_worker;
  last = std::max(last, scheduler_->now() + Latency());
  scheduler_->At(last, [this, connection, to_server, task = std::move(task)]() mutable {
    // A partition that began while the message was on its way holds it too.
    if (partitioned_.contains(connection->node)) {
      connection->held.emplace_back(to_server, std::move(task));
    } else {
      task();
    }
  });
}

void SimNetwork::Release(const std::shared_ptr<Connection>& connection) {
  auto held = std::move(connection->held);
  connection->held.clear();
  for (auto& [to_server, task] : held) Deliver(connection, to_server, std::move(task));
}

void SimNetwork::CloseWorkerEnd(const std::shared_ptr<Connection>& connection,
                                absl::Status reason) {
  if (!connection->worker_open) return;
  connection->worker_open = false;
  connection->worker_loop->Post([connection, reason] {
    if (connection->on_closed) connection->on_closed(reason);
  });
  if (!connection->server_open) connections_.erase(connection);
}

void SimNetwork::CloseServerEnd(const std::shared_ptr<Connection>& connection,
                                absl::Status reason) {
  if (!connection->server_open) return;
  connection->server_open = false;
  if (connection->server_life == server_life_ && server_loop_ != nullptr &&
      connection->server_delivered) {
    server_loop_->Post([this, connection, reason, life = server_life_] {
      if (life == server_life_ && handler_ != nullptr)
        handler_->OnClosed(connection->stream, reason);
    });
  }
  if (!connection->worker_open) connections_.erase(connection);
}

void SimNetwork::SetServer(EventLoop* loop, WorkerStreamHandler* handler) {
  ++server_life_;
  server_loop_ = loop;
  handler_ = handler;
  // The old server's connections are reset.
  const auto connections = connections_;
  for (const auto& connection : connections) {
    connection->server_open = false;
    Deliver(connection, false, [this, connection] {
      CloseWorkerEnd(connection, absl::UnavailableError("connection reset by peer"));
    });
  }
}

void SimNetwork::SetPartitioned(const std::string& node, bool partitioned) {
  if (!partitioned) {
    partitioned_.erase(node);
    const auto connections = connections_;
    for (const auto& connection : connections) {
      if (connection->node == node) Release(connection);
    }
    return;
  }
  if (!partitioned_.insert(node).second) return;
  const auto connections = connections_;
  for (const auto& connection : connections) {
    if (connection->node != node) continue;
    scheduler_->At(scheduler_->now() + options_.break_after * (0.5 + random_->Uniform()),
                   [this, connection] {
                     if (!partitioned_.contains(connection->node)) return;
                     connection->held.clear();
                     CloseWorkerEnd(connection, absl::UnavailableError("keepalive timed out"));
                     CloseServerEnd(connection, absl::UnavailableError("keepalive timed out"));
                   });
  }
}

void SimNetwork::Break(const std::string& node, absl::Status reason) {
  const auto connections = connections_;
  for (const auto& connection : connections) {
    if (connection->node != node) continue;
    connection->held.clear();
    Deliver(connection, false, [this, connection, reason] { CloseWorkerEnd(connection, reason); });
    Deliver(connection, true, [this, connection, reason] { CloseServerEnd(connection, reason); });
  }
}

class SimConnection : public CoordinatorConnection {
 public:
  using SendFunction = std::function<void(v1::WorkerMessage)>;
  SimConnection(SendFunction send, std::function<void()> destroy)
      : send_(std::move(send)), destroy_(std::move(destroy)) {}
  ~SimConnection() override { destroy_(); }
  void Send(v1::WorkerMessage message) override { send_(std::move(message)); }

 private:
  SendFunction send_;
  std::function<void()> destroy_;
};

class SimDialer : public CoordinatorDialer {
 public:
  SimDialer(SimNetwork* network, std::string node, EventLoop* loop)
      : network_(network), node_(std::move(node)), loop_(loop) {}
  ~SimDialer() override {
    // The process is gone: nothing is delivered to it any more.
    for (const auto& weak : dialled_) {
      if (const auto connection = weak.lock()) {
        connection->worker_open = false;
        connection->on_message = nullptr;
        connection->on_closed = nullptr;
      }
    }
  }

  std::unique_ptr<CoordinatorConnection> Dial(
      std::function<void(v1::CoordinatorMessage)> on_message,
      std::function<void(absl::Status)> on_closed) override {
    SimNetwork* network = network_;
    auto connection = std::make_shared<SimNetwork::Connection>();
    std::erase_if(dialled_, [](const auto& weak) { return weak.expired(); });
    dialled_.push_back(connection);
    connection->network = network;
    connection->number = ++network->last_connection_;
    connection->node = node_;
    connection->worker_loop = loop_;
    connection->on_message = std::move(on_message);
    connection->on_closed = std::move(on_closed);
    connection->worker_open = true;
    network->connections_.insert(connection);
    if (network->partitioned_.contains(node_) || network->handler_ == nullptr) {
      const bool refused = !network->partitioned_.contains(node_);
      network->scheduler_->At(network->scheduler_->now() +
                                  (refused ? network->Latency() : network->options_.break_after),
                              [network, connection] {
                                network->CloseWorkerEnd(connection,
                                                        absl::UnavailableError("cannot connect"));
                                network->connections_.erase(connection);
                              });
    } else {
      network->Deliver(connection, true, [network, connection, life = network->server_life_] {
        if (life != network->server_life_ || network->handler_ == nullptr) {
          network->Deliver(connection, false, [network, connection] {
            network->CloseWorkerEnd(connection, absl::UnavailableError("connection refused"));
          });
          return;
        }
        connection->server_open = true;
        connection->server_life = life;
        std::weak_ptr<SimNetwork::Connection> weak = connection;
        connection->stream = std::make_shared<SimStream>(
            connection->node,
            [network, weak](v1::CoordinatorMessage message) {
              const auto connection = weak.lock();
              if (connection == nullptr || !connection->server_open) return;
              network->Deliver(connection, false, [connection, message = std::move(message)] {
                if (!connection->worker_open) return;
                connection->worker_loop->Post([connection, message] {
                  if (connection->worker_open && connection->on_message)
                    connection->on_message(message);
                });
              });
            },
            [network, weak](absl::Status reason) {
              const auto connection = weak.lock();
              if (connection == nullptr || !connection->server_open) return;
              connection->server_open = false;
              network->Deliver(connection, false, [network, connection, reason] {
                network->CloseWorkerEnd(connection, reason);
                network->connections_.erase(connection);
              });
            });
      });
    }
    return std::make_unique<SimConnection>(
        [network, connection](v1::WorkerMessage message) {
          if (!connection->worker_open) return;
          network->Deliver(connection, true, [network, connection, message = std::move(message)] {
            if (!connection->server_open || connection->server_life != network->server_life_)
              return;
            connection->server_delivered = true;
            network->server_loop_->Post(
                [network, connection, message, life = network->server_life_] {
                  if (connection->server_open && life == network->server_life_ &&
                      network->handler_ != nullptr) {
                    network->handler_->OnMessage(connection->stream, message);
                  }
                });
          });
        },
        [network, connection] {
          connection->worker_open = false;
          connection->on_message = nullptr;
          connection->on_closed = nullptr;
          network->Deliver(connection, true, [network, connection] {
            network->CloseServerEnd(connection,
                                    absl::UnavailableError("the worker closed the stream"));
            network->connections_.erase(connection);
          });
        });
  }

 private:
  SimNetwork* const network_;
  const std::string node_;
  EventLoop* const loop_;
  std::vector<std::weak_ptr<SimNetwork::Connection>> dialled_;
};

std::unique_ptr<CoordinatorDialer> SimNetwork::NewDialer(const std::string& node, EventLoop* loop) {
  return std::make_unique<SimDialer>(this, node, loop);
}

}  // namespace mt
