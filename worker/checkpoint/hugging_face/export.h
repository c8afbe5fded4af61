// A checkpoint as a Hugging Face folder that from_pretrained and others load unchanged.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/checkpoint/reader.h"

namespace mt {

struct HubExportOptions {
  Env* env = Env::Real();
  std::string dtype = "bfloat16";  // or float16, float32
  int64_t max_shard_bytes = int64_t{5} << 30;
  // A folder with the config.json that the model came from, and its tokenizer; may be empty or lack either.
  std::string carry_from;
  // The token that ends a text, where no config.json is carried; unset = none. Without a word about it Hugging Face's classes would
  // take an ordinary token of theirs.
  std::optional<int64_t> eod;
};

struct HubExportResult {
  int64_t tensors = 0, files = 0, bytes = 0;
  std::vector<std::string> carried;  // names of the files that were copied
};

// Writes `folder`, which must not exist or be empty: weights first, config.json last, so that what was broken off does not load.
// Holds one shard's pieces at a time, at most a few hundred MiB. UNIMPLEMENTED: HubConfigOf has no place for the model.
// FAILED_PRECONDITION: the folder is not empty, or the checkpoint is not of the job's model. A model that names no longest context
// (model.max_positions) is made for the length that it was trained on.
absl::StatusOr<HubExportResult> ExportToHub(CheckpointReader* checkpoint, const v1::JobSpec& job,
                                            const std::string& folder,
                                            const HubExportOptions& options);

}  // namespace mt
