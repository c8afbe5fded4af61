// The cluster's own certificate authority: made at the first start, kept in `<state>/tls`, trusted
// by nobody else.
//
//   <folder>/ca.crt ca.key                        the authority (P-256, ten years); the key never
//   leaves this folder <folder>/coordinator.crt coordinator.key      server certificate, renewed at
//   every start of the coordinator <folder>/<role>.crt <role>.key                client
//   certificates: viewer, submitter, operator
//
// Folders are 0700, keys 0600. Who a peer is, is its common name and nothing else:
// `coordinator:<cluster>`, `node:<node name>`, or `<role>:<user>`. Whom a client expects is one
// fixed DNS name in the server's certificate (kCoordinatorTargetName, kWorkerTargetName), so that
// addresses may change freely.
#pragma once

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/env.h"
#include "common/status.h"

namespace mt {

inline constexpr char kCoordinatorTargetName[] = "coordinator.mt.internal";
inline constexpr char kWorkerTargetName[] = "worker.mt.internal";

// What a client certificate allows; each role may do what the ones before it may.
enum class Role { kViewer, kSubmitter, kOperator };
absl::string_view RoleName(Role role);
absl::StatusOr<Role> ParseRole(absl::string_view name);

struct CertificateAndKey {
  std::string certificate_pem;
  std::string key_pem;
};

// Thread-safe: nothing changes after creation.
class ClusterCa {
 public:
  // Loads the authority of `folder` or makes it. FAILED_PRECONDITION: the key is readable by
  // others, or only one of the two files is there; INVALID_ARGUMENT: they do not belong together or
  // are not PEM.
  static absl::StatusOr<std::unique_ptr<ClusterCa>> LoadOrCreate(Env* env,
                                                                 const std::string& folder);
  virtual ~ClusterCa() = default;

  virtual const std::string& certificate_pem() const = 0;
  virtual absl::StatusOr<CertificateAndKey> IssueCoordinator(absl::string_view cluster) const = 0;
  // For a node's daemon, both as client of the coordinator and as server of Shards.
  virtual absl::StatusOr<CertificateAndKey> IssueNode(
      absl::string_view node, absl::Duration lifetime = absl::Hours(24 * 7)) const = 0;
  virtual absl::StatusOr<CertificateAndKey> IssueClient(
      absl::string_view user, Role role, absl::Duration lifetime = absl::Hours(24 * 90)) const = 0;
};

// Writes `<folder>/<name>.crt` and `<folder>/<name>.key` (0600), atomically each.
absl::Status WriteCertificate(Env* env, const std::string& folder, absl::string_view name,
                              const CertificateAndKey& pair);

// When the certificate stops being valid. INVALID_ARGUMENT if it is not PEM.
absl::StatusOr<absl::Time> CertificateExpiry(absl::string_view certificate_pem);

}  // namespace mt
