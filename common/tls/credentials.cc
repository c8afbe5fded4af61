#include "common/tls/credentials.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/stat.h>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace mt {
namespace {

constexpr int kPingSeconds = 15;
constexpr int kPingTimeoutSeconds = 10;

struct Pems {
  std::string ca, certificate, key;
};

absl::StatusOr<Pems> Load(Env* env, const TlsFiles& files) {
  struct stat info = {};
  if (stat(files.key.c_str(), &info) == 0 && (info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(files.key, " can be read by others; make it private: chmod 600 ", files.key));
  }
  Pems pems;
  MT_ASSIGN_OR_RETURN(pems.ca, ReadFile(env, files.ca, 1 << 20));
  MT_ASSIGN_OR_RETURN(pems.certificate, ReadFile(env, files.certificate, 1 << 20));
  MT_ASSIGN_OR_RETURN(pems.key, ReadFile(env, files.key, 1 << 20));
  // gRPC says nothing about why a handshake fails, so a broken file is named here.
  MT_RETURN_IF_ERROR(Annotate(CertificateExpiry(pems.ca).status(), files.ca));
  MT_RETURN_IF_ERROR(Annotate(CertificateExpiry(pems.certificate).status(), files.certificate));
  return pems;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> NewChannelCredentials(
    Env* env, const TlsFiles& files) {
  if (files.empty()) return grpc::InsecureChannelCredentials();
  MT_ASSIGN_OR_RETURN(Pems pems, Load(env, files));
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = std::move(pems.ca);
  options.pem_cert_chain = std::move(pems.certificate);
  options.pem_private_key = std::move(pems.key);
  return grpc::SslCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> NewServerCredentials(Env* env,
                                                                              const TlsFiles& files,
                                                                              int refresh_seconds) {
  if (files.empty()) return grpc::InsecureServerCredentials();
  MT_RETURN_IF_ERROR(Load(env, files).status());
  auto provider = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      files.key, files.certificate, files.ca, refresh_seconds);
  grpc::experimental::TlsServerCredentialsOptions options(provider);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return grpc::experimental::TlsServerCredentials(options);
}

grpc::ChannelArguments NewChannelArguments(const std::string& target_name) {
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(target_name);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingSeconds * 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingTimeoutSeconds * 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Whoever dials again does its own back-off; gRPC's, which grows to two minutes, would hide a
  // server that is back.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  return arguments;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> NewChannel(Env* env, const std::string& address,
                                                          const TlsFiles& files,
                                                          const std::string& target_name) {
  MT_ASSIGN_OR_RETURN(auto credentials, NewChannelCredentials(env, files));
  return grpc::CreateCustomChannel(address, credentials, NewChannelArguments(target_name));
}

void SetServerDefaults(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kPingSeconds * 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingTimeoutSeconds * 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingSeconds * 1000 / 3);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT,
                             0);  // a second server on the port is an error, not a coin toss
}

absl::StatusOr<PeerIdentity> ParseCommonName(absl::string_view common_name) {
  PeerIdentity peer;
  peer.common_name = std::string(common_name);
  const size_t colon = common_name.find(':');
  const absl::string_view kind =
      common_name.substr(0, colon == absl::string_view::npos ? 0 : colon);
  const absl::string_view name =
      common_name.substr(colon == absl::string_view::npos ? 0 : colon + 1);
  peer.name = std::string(name);
  if (kind == "node") {
    peer.kind = PeerIdentity::Kind::kNode;
  } else if (kind == "coordinator") {
    peer.kind = PeerIdentity::Kind::kCoordinator;
  } else if (const absl::StatusOr<Role> role = ParseRole(kind); role.ok()) {
    peer.kind = PeerIdentity::Kind::kClient;
    peer.role = *role;
  } else {
    return absl::UnauthenticatedError(
        absl::StrCat("certificate name \"", common_name, "\" is none that this cluster issues"));
  }
  return peer;
}

absl::StatusOr<PeerIdentity> PeerOf(const grpc::AuthContext& context) {
  if (!context.IsPeerAuthenticated()) return PeerIdentity{};
  const std::vector<grpc::string_ref> names = context.FindPropertyValues("x509_common_name");
  if (names.size() != 1)
    return absl::UnauthenticatedError("the peer's certificate has no single common name");
  MT_ASSIGN_OR_RETURN(PeerIdentity peer,
                      ParseCommonName(absl::string_view(names[0].data(), names[0].size())));
  const std::vector<grpc::string_ref> pems =
      context.FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME);
  if (pems.size() == 1) {
    MT_ASSIGN_OR_RETURN(peer.expiry,
                        CertificateExpiry(absl::string_view(pems[0].data(), pems[0].size())));
  }
  return peer;
}

}  // namespace mt
