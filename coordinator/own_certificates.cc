#include "coordinator/own_certificates.h"

#include "common/log.h"

namespace mt {
namespace {

constexpr absl::Duration kRenewalInterval = absl::Hours(24);

}  // namespace

OwnCertificates::OwnCertificates(EventLoop* loop, Env* env, const ClusterCa* ca, std::string folder,
                                 std::string user)
    : loop_(loop), env_(env), ca_(ca), folder_(std::move(folder)), user_(std::move(user)) {}

OwnCertificates::~OwnCertificates() { loop_->Cancel(timer_); }

absl::StatusOr<std::unique_ptr<OwnCertificates>> OwnCertificates::Create(EventLoop* loop, Env* env,
                                                                         const ClusterCa* ca,
                                                                         std::string folder,
                                                                         std::string user) {
  std::unique_ptr<OwnCertificates> own(
      new OwnCertificates(loop, env, ca, std::move(folder), std::move(user)));
  MT_RETURN_IF_ERROR(own->Renew());
  own->RenewLater();
  return own;
}

absl::Status OwnCertificates::Renew() {
  MT_ASSIGN_OR_RETURN(const CertificateAndKey own, ca_->IssueCoordinator("mt"));
  MT_RETURN_IF_ERROR(WriteCertificate(env_, folder_, "coordinator", own));
  MT_ASSIGN_OR_RETURN(expiry_, CertificateExpiry(own.certificate_pem));
  for (const Role role : {Role::kViewer, Role::kSubmitter, Role::kOperator}) {
    MT_ASSIGN_OR_RETURN(const CertificateAndKey pair, ca_->IssueClient(user_, role));
    MT_RETURN_IF_ERROR(WriteCertificate(env_, folder_, RoleName(role), pair));
  }
  return absl::OkStatus();
}

void OwnCertificates::RenewLater() {
  timer_ = loop_->After(kRenewalInterval, [this] {
    if (const absl::Status status = Renew(); !status.ok()) {
      MT_LOG(Error) << "the coordinator's and the local clients' certificates in " << folder_
                    << " were not renewed: " << status.ToString() << "; tried again in a day";
    }
    RenewLater();
  });
}

}  // namespace mt
