// Files of a Hugging Face folder that are neither weights nor config.json: they go along as they are.
#pragma once

#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"

namespace mt {

// Where an imported checkpoint keeps them, and its config.json, in its own folder.
inline constexpr char kHubSubfolder[] = "hugging_face";

// Copies tokenizer, chat template and generation_config.json, where `from` has them; returns their names. `config` too: also
// config.json.
absl::StatusOr<std::vector<std::string>> CarryFiles(Env* env, const std::string& from,
                                                    const std::string& to, bool config);

}  // namespace mt
