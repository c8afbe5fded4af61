#include "coordinator/api/call.h"

namespace mt {

absl::StatusOr<Caller> CheckCaller(const grpc::AuthContext& context, Role needed) {
  MT_ASSIGN_OR_RETURN(const PeerIdentity peer, PeerOf(context));
  if (peer.kind == PeerIdentity::Kind::kAnonymous) return Caller{Role::kOperator, "anonymous"};
  if (peer.kind != PeerIdentity::Kind::kClient) {
    return absl::PermissionDeniedError(
        absl::StrCat("certificate \"", peer.common_name,
                     "\" is not a client's; use one of viewer, submitter or operator"));
  }
  if (peer.role < needed) {
    return absl::PermissionDeniedError(
        absl::StrCat("\"", peer.common_name, "\" is a ", RoleName(peer.role),
                     "; this needs a certificate of role ", RoleName(needed)));
  }
  return Caller{peer.role, peer.name};
}

void Audit(const Caller& caller, absl::string_view what, absl::string_view object,
           const absl::Status& result) {
  MT_LOG(Info) << "call by " << caller.name << " (" << RoleName(caller.role) << "): " << what << " "
               << object << ": " << (result.ok() ? "OK" : result.ToString());
}

}  // namespace mt
