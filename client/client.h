// The client library: finds a coordinator, connects over mTLS and calls it. mtctl is made of it.
//
// Where the coordinator is, the first that is given: --endpoint, MT_ENDPOINT, the context named by --context or MT_CONTEXT,
// the current context. An endpoint is the path of an endpoint file (common/endpoint_file.h) or host:port, whose certificates
// are in --tls-dir or MT_TLS_DIR (ca.crt, operator.crt, operator.key) unless --insecure. A context is a name for an endpoint
// file, whose path is in <config folder>/contexts/<name>; <config folder>/current-context names the one that is used. `mtctl dev up` and
// `mtctl cluster up` write both.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "common/exit_codes.h"
#include "common/status.h"
#include "common/tls/credentials.h"
#include "mt/v1/checkpoints.grpc.pb.h"
#include "mt/v1/cluster.grpc.pb.h"
#include "mt/v1/jobs.grpc.pb.h"

namespace mt::client {

struct ConnectOptions {
  std::string endpoint;  // path of an endpoint file, or host:port
  std::string context;
  std::string tls_directory;  // with host:port
  bool insecure = false;
  absl::Duration timeout =
      absl::Seconds(10);  // of each unary call; connecting gets at most 2 s of it
};

struct Endpoint {
  std::string address;  // host:port
  TlsFiles tls;         // empty = without TLS
  std::string source;   // where it was found, for messages
  std::string metrics;  // URL, if known
};

// UNAVAILABLE (no endpoint is configured: says how to start or name one), INVALID_ARGUMENT (malformed endpoint file).
absl::StatusOr<Endpoint> FindEndpoint(const ConnectOptions& options);
std::string ConfigDirectory();  // $MT_CONFIG_DIR, or $HOME/.mt
// Makes `endpoint_file` a context and the current one.
absl::Status SaveContext(const std::string& name, const std::string& endpoint_file);

// Thread-safe.
class Client {
 public:
  // UNAVAILABLE within 2 s if nobody answers there; PERMISSION_DENIED if the certificates do not fit.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ConnectOptions& options);

  v1::Jobs::Stub& jobs() { return *jobs_; }
  v1::Cluster::Stub& cluster() { return *cluster_; }
  v1::Checkpoints::Stub& checkpoints() { return *checkpoints_; }
  const Endpoint& endpoint() const { return endpoint_; }
  const ConnectOptions& options() const { return options_; }

  // One unary call with the options' deadline (or `timeout` when positive).
  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(
      Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
      const Request& request, absl::Duration timeout = absl::ZeroDuration()) {
    grpc::ClientContext context;
    context.set_deadline(
        std::chrono::system_clock::now() +
        absl::ToChronoMilliseconds(timeout > absl::ZeroDuration() ? timeout : options_.timeout));
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  static absl::Status FromGrpc(const grpc::Status& status);

 private:
  Client() = default;
  Endpoint endpoint_;
  ConnectOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Jobs::Stub> jobs_;
  std::unique_ptr<v1::Cluster::Stub> cluster_;
  std::unique_ptr<v1::Checkpoints::Stub> checkpoints_;
};

// The one table from status codes to exit codes.
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace mt::client
