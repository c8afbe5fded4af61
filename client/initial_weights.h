// The weights that a job begins with (initial_checkpoint), as far as this machine sees their folder. One that only nodes see is
// looked at by them, before they start a rank.
#pragma once

#include <string>

#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt::client {

// The model of "hf:FOLDER" (its config.json) or of a checkpoint's folder, with a note for each thing of config.json that a job
// does not take over. Where the folder is not on this machine: an empty one if the job's own model `is_written`, else NOT_FOUND,
// which says what to write.
absl::StatusOr<v1::ModelSpec> ModelOfFolder(const std::string& initial_checkpoint, bool is_written);

// CheckInitialCheckpoint (worker/checkpoint/hugging_face), or a note if the folder is not on this machine.
absl::Status CheckInitialWeightsIfHere(const v1::JobSpec& spec);

// INVALID_ARGUMENT: data.tokenizer, if it is on this machine, has more ids than the model.
absl::Status CheckTokenizerIfHere(const v1::JobSpec& spec);

}  // namespace mt::client
