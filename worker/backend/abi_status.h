// Codes of the backend contract as a Status, for whoever calls a backend's table. Header only, so that rooms below this one
// (worker/comm, worker/checkpoint), which are given a table and load none, need nothing else of it.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "kernels/abi/mt_backend.h"

namespace mt {

// OK for MT_OK and MT_IN_PROGRESS; else `message` as INVALID_ARGUMENT, UNIMPLEMENTED, RESOURCE_EXHAUSTED or INTERNAL.
inline absl::Status AbiStatus(int32_t code, absl::string_view message) {
  if (code >= 0) return absl::OkStatus();
  switch (code) {
    case MT_ERROR_INVALID:
      return absl::InvalidArgumentError(message);
    case MT_ERROR_UNSUPPORTED:
      return absl::UnimplementedError(message);
    case MT_ERROR_MEMORY:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace mt
