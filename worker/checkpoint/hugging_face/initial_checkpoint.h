// job.initial_checkpoint: the weights that a run begins with, hf:FOLDER or the folder of a checkpoint, as every node sees it.
#pragma once

#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/checkpoint/state.h"

namespace mt {

inline constexpr char kHubPrefix[] = "hf:";

// What follows hf:, or empty.
std::string HubFolderOf(absl::string_view initial_checkpoint);

// Looks at the folder (headers and sizes, not weights) and compares it with the job's model: what a node does before it starts a
// rank, and mtctl before it queues a job. OK if the job begins with fresh weights. NOT_FOUND: no such folder or file;
// FAILED_PRECONDITION, UNIMPLEMENTED, DATA_LOSS, INVALID_ARGUMENT: it cannot be trained from; messages name the thing and the
// remedy.
absl::Status CheckInitialCheckpoint(Env* env, const v1::JobSpec& spec);

// Fills `boxes` (Trainer::LoadTargets) with the weights and sets optimizer state to zero. `device`: whose memory they are in,
// null = host memory.
absl::Status LoadInitialCheckpoint(Env* env, const v1::JobSpec& spec,
                                   const std::vector<TensorBox>& boxes, const mt_backend* device);

}  // namespace mt
