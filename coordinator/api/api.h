// What clients call: the services of proto/mt/v1 over the Coordinator's logic. Transport only: who
// may call what, streams with bounded queues, and moving each call onto the coordinator's loop.
// Everything else is decided there.
//
// Roles come from the client's certificate: a viewer reads; a submitter also submits, steers its
// own jobs and pulls checkpoints; an operator does everything. Without TLS (--insecure, loopback)
// everybody is an operator. Every call that changes something leaves one line in the log: who,
// what, result.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include <functional>
#include <memory>
#include <string>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/tls/credentials.h"
#include "coordinator/coordinator.h"

namespace mt {

// `loop` and `coordinator` outlive the services, and the services outlive the server they are
// registered with.
std::unique_ptr<grpc::Service> NewJobsService(EventLoop* loop, Coordinator* coordinator);

// `stop` runs on the loop after a Shutdown call has been answered by the coordinator: the process
// should end.
std::unique_ptr<grpc::Service> NewClusterService(EventLoop* loop, Coordinator* coordinator,
                                                 std::function<void()> stop);

// `tls` is the coordinator's own certificate, with which it reads from the workers' Shards
// services.
std::unique_ptr<grpc::Service> NewCheckpointsService(EventLoop* loop, Env* env,
                                                     Coordinator* coordinator, TlsFiles tls);

// Datasets.Read of the files of jobs that distribute their data; for nodes.
std::unique_ptr<grpc::Service> NewCoordinatorDatasetsService(EventLoop* loop, Env* env,
                                                             Coordinator* coordinator);

}  // namespace mt
