#pragma once

#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// INVALID_ARGUMENT if the sizes of a model's experts do not go together; names the field, the value and what would do. OK without experts. `spec` is resolved.
absl::Status CheckMoe(const v1::JobSpec& spec);

}  // namespace mt
