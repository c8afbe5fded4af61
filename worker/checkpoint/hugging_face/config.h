// config.json of a Hugging Face folder <-> v1::ModelSpec.
//
// What the engine does not compute is refused, by key and value, and never ignored in silence; what belongs to training alone
// (dropout, coefficients of router losses) is left to the job and told in `notes`. A key that is absent has the default of the
// architecture's class in transformers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

struct HubConfig {
  v1::ModelSpec
      model;  // what the file says and nothing else: ResolveModel (common/spec) makes it whole
  std::string dtype;  // of the weights: "bfloat16", "float32", ...; empty if it is not said
  // Rows and columns that share one scale where weights are FP8 (`weight_scale_inv`); 0 = they are not.
  int64_t fp8_block_rows = 0, fp8_block_columns = 0;
  std::vector<std::string> notes;  // for people: what was left out
};

// `path` is for messages. INVALID_ARGUMENT: not JSON, a key that is missing or has no sensible value. UNIMPLEMENTED: an
// architecture or a trait that the engine does not have.
absl::StatusOr<HubConfig> ParseHubConfig(absl::string_view json, const std::string& path);

// The config.json of `model` (resolved) with weights of type `dtype`. `base` is the config.json of the folder that the model
// came from, whose other keys are kept, or empty. UNIMPLEMENTED: the architecture's class has no place for a trait; the message
// names it.
absl::StatusOr<std::string> HubConfigOf(const v1::ModelSpec& model, absl::string_view dtype,
                                        absl::string_view base);

}  // namespace mt
