// A Hugging Face folder as a checkpoint: its weights in float32, no optimizer state, step 0.
#pragma once

#include <cstdint>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/checkpoint.pb.h"
#include "worker/checkpoint/hugging_face/import.h"

namespace mt {

struct HubImportOptions {
  Env* env = Env::Real();
  int64_t max_shard_bytes = int64_t{4} << 30;
  std::string mt_version;
};

// Writes `to`, which must not exist or be empty: shards, then hugging_face/ with config.json, the tokenizer and what else goes
// along, and the manifest last. Holds one piece of one tensor at a time.
absl::StatusOr<v1::CheckpointManifest> HubToCheckpoint(const HubFolder& hub,
                                                       const std::string& from,
                                                       const std::string& to,
                                                       const HubImportOptions& options);

}  // namespace mt
