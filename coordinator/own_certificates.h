// The certificates of the coordinator's own server and of the clients on its machine, in `<state>/tls`: made anew at its start and
// every day after, so that a coordinator which runs for years needs no restart for them. Its server reads changed files by itself
// (common/tls/credentials.h), and clients read them at each call.
#pragma once

#include <memory>
#include <string>

#include "common/event_loop.h"
#include "common/tls/cluster_ca.h"

namespace mt {

class OwnCertificates {
 public:
  // Writes all of them now; errors are those of writing. `user`: whom the clients' certificates name. Everything passed in
  // outlives the object.
  static absl::StatusOr<std::unique_ptr<OwnCertificates>> Create(EventLoop* loop, Env* env,
                                                                 const ClusterCa* ca,
                                                                 std::string folder,
                                                                 std::string user);
  ~OwnCertificates();  // on the loop

  // When the coordinator's present certificate ends. On the loop.
  absl::Time expiry() const { return expiry_; }

 private:
  OwnCertificates(EventLoop* loop, Env* env, const ClusterCa* ca, std::string folder,
                  std::string user);
  absl::Status Renew();
  void RenewLater();

  EventLoop* const loop_;
  Env* const env_;
  const ClusterCa* const ca_;
  const std::string folder_, user_;
  absl::Time expiry_;
  EventLoop::TimerId timer_ = 0;
};

}  // namespace mt
