// common/transport.h carried by gRPC: WorkerControl.Connect, one stream per node.
//
// Invariants. Handler and connection callbacks run on the EventLoop that was given, in the order of
// the stream. A side reads its next message only after the loop has run the callback for the one
// before, so a slow loop slows the peer and memory stays bounded; what waits to be sent is bounded
// by kMaxQueuedBytes, and a stream that passes it is closed with RESOURCE_EXHAUSTED.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/tls/credentials.h"
#include "common/transport.h"

namespace mt {

inline constexpr size_t kMaxQueuedBytes = 256 << 20;

// The coordinator's side: register the service with a ServerBuilder. `loop` and `handler` outlive
// the server. With TLS only a certificate of a node is let in (PERMISSION_DENIED); the handler
// compares AuthenticatedNode with Register.
std::unique_ptr<grpc::Service> NewWorkerControlService(EventLoop* loop,
                                                       WorkerStreamHandler* handler);

// host:port of `address`, which may be @FILE: the file holds it, because a coordinator may come back elsewhere.
absl::StatusOr<std::string> CoordinatorAddress(Env* env, const std::string& address);

// `address` as for CoordinatorAddress, which is asked at every Dial. The worker's side. Every Dial makes a new channel and reads the
// certificate files again. `loop` outlives the dialer and its connections; call Dial and destroy
// connections on the loop.
std::unique_ptr<CoordinatorDialer> NewGrpcCoordinatorDialer(EventLoop* loop, Env* env,
                                                            std::string address, TlsFiles files);

}  // namespace mt
