// A case of golden.json or of compare.py, ordered by mt. Both sides name what they made alike.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/status.h"
#include "nlohmann/json.hpp"

namespace mt {

// By name: "I.document", "I.sample" (position and offset in turn) and "I.shuffle" of dataset I; of a blend "blend.dataset" and
// "blend.sample"; and of the first `case.read` samples "tokens", "loss_mask" and "positions".
using OrderArrays = std::map<std::string, std::vector<int64_t>>;

// {"train", "validation", "test": [[prefix, weight or 0]...], "split", "share": 0..2, "sequence_length", "samples", "seed", "eod",
//  "mask_eod", "read"}. Prefixes are below `folder`.
absl::StatusOr<OrderArrays> OrderOf(const nlohmann::json& c, const std::string& folder);

}  // namespace mt
