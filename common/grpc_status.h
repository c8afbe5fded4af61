// absl::Status and grpc::Status use the same code numbers, so a code crosses the wire unchanged;
// gRPC 1.51 converts neither.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "common/status.h"

namespace mt {

inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()));
}

inline absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace mt
