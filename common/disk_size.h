// Sizes on disks as people write them.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "common/status.h"

namespace mt {

// "500M", "200G", "1.5T" or plain bytes; powers of ten, as disks are sold. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<int64_t> ParseDiskSize(absl::string_view text);

}  // namespace mt
