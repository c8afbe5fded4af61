#include "client/client.h"

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/endpoint_file.h"
#include "common/env.h"

namespace mt::client {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(2);

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

absl::StatusOr<Endpoint> FromFile(const std::string& path, const std::string& source) {
  const absl::StatusOr<std::string> text = ReadFile(Env::Real(), path, 1 << 20);
  if (!text.ok()) {
    // No file: the coordinator that wrote it has been shut down.
    const absl::StatusCode code =
        absl::IsNotFound(text.status()) ? absl::StatusCode::kUnavailable : text.status().code();
    return absl::Status(code,
                        absl::StrCat("no coordinator at ", source, ": ", text.status().message()));
  }
  MT_ASSIGN_OR_RETURN(const EndpointFile file, ParseEndpointFile(*text, path));
  Endpoint endpoint{.address = file.address, .source = source, .metrics = file.metrics};
  if (!file.insecure)
    endpoint.tls = {.ca = file.ca, .certificate = file.certificate, .key = file.key};
  return endpoint;
}

absl::StatusOr<Endpoint> FromAddress(const std::string& address, const ConnectOptions& options,
                                     const std::string& source) {
  Endpoint endpoint{.address = address, .source = source};
  if (options.insecure) return endpoint;
  const std::string folder =
      options.tls_directory.empty() ? Variable("MT_TLS_DIR") : options.tls_directory;
  if (folder.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("endpoint ", address,
                     " needs certificates: name their folder with --tls-dir "
                     "(ca.crt and operator.crt/.key, submitter.* or viewer.*), or use --insecure"));
  }
  for (const char* role : {"operator", "submitter", "viewer"}) {
    const TlsFiles tls{.ca = JoinPath(folder, "ca.crt"),
                       .certificate = JoinPath(folder, absl::StrCat(role, ".crt")),
                       .key = JoinPath(folder, absl::StrCat(role, ".key"))};
    if (!Exists(Env::Real(), tls.certificate)) continue;
    endpoint.tls = tls;
    return endpoint;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--tls-dir ", folder, " holds no operator.crt, submitter.crt or viewer.crt"));
}

absl::StatusOr<std::string> ContextPath(const std::string& name) {
  if (name.empty() || name.find('/') != std::string::npos || name[0] == '.') {
    return absl::InvalidArgumentError(absl::StrCat("context `", name, "` is not a plain name"));
  }
  return JoinPath(JoinPath(ConfigDirectory(), "contexts"), name);
}

absl::StatusOr<Endpoint> FromContext(const std::string& name) {
  MT_ASSIGN_OR_RETURN(const std::string path, ContextPath(name));
  const absl::StatusOr<std::string> file = ReadFile(Env::Real(), path, 1 << 16);
  if (!file.ok())
    return absl::NotFoundError(
        absl::StrCat("there is no context `", name, "`: ", file.status().message()));
  return FromFile(std::string(absl::StripAsciiWhitespace(*file)), absl::StrCat("context ", name));
}

}  // namespace

std::string ConfigDirectory() {
  if (const std::string set = Variable("MT_CONFIG_DIR"); !set.empty()) return set;
  const std::string home = Variable("HOME");
  return JoinPath(home.empty() ? "/tmp" : home, ".mt");
}

absl::Status SaveContext(const std::string& name, const std::string& endpoint_file) {
  MT_ASSIGN_OR_RETURN(const std::string path, ContextPath(name));
  MT_RETURN_IF_ERROR(Env::Real()->CreateDirectories(JoinPath(ConfigDirectory(), "contexts")));
  MT_RETURN_IF_ERROR(WriteFileAtomically(Env::Real(), path, endpoint_file + "\n"));
  return WriteFileAtomically(Env::Real(), JoinPath(ConfigDirectory(), "current-context"),
                             name + "\n");
}

absl::StatusOr<Endpoint> FindEndpoint(const ConnectOptions& options) {
  std::string given = options.endpoint, source = absl::StrCat("--endpoint ", options.endpoint);
  if (given.empty() && options.context.empty()) {
    given = Variable("MT_ENDPOINT");
    source = absl::StrCat("MT_ENDPOINT=", given);
  }
  if (!given.empty()) {
    if (absl::StrContains(given, '/') || absl::EndsWith(given, ".json"))
      return FromFile(given, source);
    if (!absl::StrContains(given, ':')) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ": expected host:port or the path of an endpoint file"));
    }
    return FromAddress(given, options, source);
  }
  std::string context = options.context.empty() ? Variable("MT_CONTEXT") : options.context;
  if (context.empty()) {
    const auto current =
        ReadFile(Env::Real(), JoinPath(ConfigDirectory(), "current-context"), 1 << 16);
    if (!current.ok()) {
      return absl::UnavailableError(
          "no coordinator is configured: start one with `mtctl dev up` or `mtctl cluster up "
          "--hostfile FILE`, or name one with "
          "--endpoint or MT_ENDPOINT");
    }
    context = std::string(absl::StripAsciiWhitespace(*current));
  }
  return FromContext(context);
}

absl::Status Client::FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ConnectOptions& options) {
  MT_ASSIGN_OR_RETURN(Endpoint endpoint, FindEndpoint(options));
  std::unique_ptr<Client> client(new Client());
  MT_ASSIGN_OR_RETURN(client->channel_, NewChannel(Env::Real(), endpoint.address, endpoint.tls,
                                                   kCoordinatorTargetName));
  client->endpoint_ = std::move(endpoint);
  client->options_ = options;
  client->jobs_ = v1::Jobs::NewStub(client->channel_);
  client->cluster_ = v1::Cluster::NewStub(client->channel_);
  client->checkpoints_ = v1::Checkpoints::NewStub(client->channel_);

  const auto deadline =
      std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kConnectTimeout);
  grpc_connectivity_state state = client->channel_->GetState(/*try_to_connect=*/true);
  while (state != GRPC_CHANNEL_READY && state != GRPC_CHANNEL_TRANSIENT_FAILURE &&
         client->channel_->WaitForStateChange(state, deadline)) {
    state = client->channel_->GetState(true);
  }
  if (state == GRPC_CHANNEL_READY) return client;
  std::string why = absl::StrFormat("no answer within %s", absl::FormatDuration(kConnectTimeout));
  if (state == GRPC_CHANNEL_TRANSIENT_FAILURE) {
    // Only a call tells why; it fails at once in this state.
    const auto probe = client->Call(*client->cluster_, &v1::Cluster::Stub::Status,
                                    v1::ClusterStatusRequest(), absl::Milliseconds(300));
    if (probe.ok()) return client;
    why = std::string(probe.status().message());
  }
  const std::string where =
      absl::StrCat(client->endpoint_.address, " (", client->endpoint_.source, ")");
  if (absl::StrContains(why, "certificate") || absl::StrContains(why, "SSL") ||
      absl::StrContains(why, "andshak")) {
    return absl::PermissionDeniedError(absl::StrCat(
        "the coordinator at ", where, " and this client's certificates do not fit: ", why));
  }
  return absl::UnavailableError(absl::StrCat("no coordinator answers at ", where, ": ", why));
}

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitAuth;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kResourceExhausted:
      return kExitPrecondition;
    case absl::StatusCode::kUnavailable:
      return kExitUnavailable;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitDeadline;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitInternal;
  }
}

}  // namespace mt::client
