// mTLS for every channel and server of mt. With `TlsFiles` empty (a process was started with
// --insecure) both give plain credentials. Keep-alive is set here for both sides, because a server
// answers pings that it was not told to expect by closing the connection (GOAWAY too_many_pings).
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "common/tls/cluster_ca.h"

namespace mt {

struct TlsFiles {  // paths of PEM files; all empty = no TLS
  std::string ca;
  std::string certificate;
  std::string key;
  bool empty() const { return ca.empty() && certificate.empty() && key.empty(); }
};

// Reads the files now, so a renewed certificate is used by the next channel. FAILED_PRECONDITION:
// the key file is readable by others.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> NewChannelCredentials(
    Env* env, const TlsFiles& files);
// Requires and verifies a client certificate of the cluster's CA. The certificate is read again
// when its file changes, looked for every `refresh_seconds`.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> NewServerCredentials(
    Env* env, const TlsFiles& files, int refresh_seconds = 60);

// Keep-alive, message limit, and the name that the server's certificate must carry
// (kCoordinatorTargetName or kWorkerTargetName). Every channel owns its connections (no sharing
// with channels of an older certificate).
grpc::ChannelArguments NewChannelArguments(const std::string& target_name);
// The three lines most callers need.
absl::StatusOr<std::shared_ptr<grpc::Channel>> NewChannel(Env* env, const std::string& address,
                                                          const TlsFiles& files,
                                                          const std::string& target_name);
// The server's half of NewChannelArguments.
void SetServerDefaults(grpc::ServerBuilder& builder);

// Who is on the other side, from its verified certificate.
struct PeerIdentity {
  enum class Kind {
    kAnonymous,
    kCoordinator,
    kNode,
    kClient
  };  // kAnonymous: this server runs without TLS
  Kind kind = Kind::kAnonymous;
  std::string name;           // node, user or cluster
  Role role = Role::kViewer;  // of a client
  std::string common_name;
  absl::Time expiry = absl::InfiniteFuture();  // of the certificate
};
// UNAUTHENTICATED: TLS is on but the name is none that this cluster issues.
absl::StatusOr<PeerIdentity> PeerOf(const grpc::AuthContext& context);
absl::StatusOr<PeerIdentity> ParseCommonName(absl::string_view common_name);

// Rank tables, and manifests: of a large mixture of experts over many ranks they have some hundred MiB. File pieces stay at 1 MiB.
inline constexpr int kMaxMessageBytes = 1 << 30;

}  // namespace mt
