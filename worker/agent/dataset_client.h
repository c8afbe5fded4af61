// The real DatasetTransport: Datasets.Read over mTLS, of other nodes and of the coordinator.
#pragma once

#include <memory>
#include <string>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/tls/credentials.h"
#include "worker/agent/dataset_transport.h"

namespace mt {

// `coordinator` may be @FILE (common/grpc_transport.h). Each stream has a thread of its own; destroying a stream cancels the call and
// waits for the thread. `loop` is the store's.
std::unique_ptr<DatasetTransport> NewGrpcDatasetTransport(EventLoop* loop, Env* env,
                                                          std::string coordinator, TlsFiles tls);

}  // namespace mt
