// The worker stream without gRPC: what the daemons' logic sees. common/grpc_transport.* carries it over mTLS; the
// simulation carries it in memory with delays, losses of connection and partitions. Messages of one stream arrive in order,
// once, or the stream closes. All callbacks run on the EventLoop that was given at creation.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "common/status.h"
#include "mt/v1/worker.pb.h"

namespace mt {

// A message that goes to many: made and serialized once, and all the queues that it waits in share its bytes.
struct SharedMessage {
  explicit SharedMessage(v1::CoordinatorMessage given)
      : message(std::move(given)), bytes(message.SerializeAsString()) {}
  const v1::CoordinatorMessage message;
  const std::string bytes;
};

// Coordinator side of one open stream. Send never blocks: messages queue (the transport closes a stream whose queue passes its
// limit). After Close nothing more is delivered in either direction.
class WorkerStream {
 public:
  virtual ~WorkerStream() = default;
  virtual void Send(v1::CoordinatorMessage message) = 0;
  // The same without a copy of the message, where the transport can.
  virtual void SendShared(std::shared_ptr<const SharedMessage> message) { Send(message->message); }
  virtual void Close(absl::Status reason) = 0;
  // Node name that the peer's certificate is for; empty when TLS is off.
  virtual std::string AuthenticatedNode() const = 0;
  // When that certificate ends; infinite when TLS is off.
  virtual absl::Time CertificateExpiry() const { return absl::InfiniteFuture(); }
};

class WorkerStreamHandler {
 public:
  virtual ~WorkerStreamHandler() = default;
  virtual void OnMessage(std::shared_ptr<WorkerStream> stream, v1::WorkerMessage message) = 0;
  // Exactly once per stream that has delivered a message, unless this side called Close.
  virtual void OnClosed(std::shared_ptr<WorkerStream> stream, absl::Status reason) = 0;
};

// Worker side. Destroying the connection closes it; no callback runs afterwards.
class CoordinatorConnection {
 public:
  virtual ~CoordinatorConnection() = default;
  virtual void Send(v1::WorkerMessage message) = 0;
};

class CoordinatorDialer {
 public:
  virtual ~CoordinatorDialer() = default;
  // Opens a stream. `on_closed` runs once when it could not be opened or broke; the caller dials again (with back-off).
  virtual std::unique_ptr<CoordinatorConnection> Dial(
      std::function<void(v1::CoordinatorMessage)> on_message,
      std::function<void(absl::Status)> on_closed) = 0;
};

}  // namespace mt
