// Checkpoints in a folder: names, the manifest as JSON, commit, list, delete. A shared path and a
// node's own store look alike:
//
//   <root>/<job id>/step-00000020/manifest.json       what makes it a checkpoint: no manifest, no
//   checkpoint
//                                shard-r0.safetensors
//                  /latest                            "step-00000020\n", a hint for people and
//                  scripts
//
// All functions take any root and are safe to call again after a crash at any point
// (docs/spec/checkpoint.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/checkpoint.pb.h"
#include "mt/v1/worker.pb.h"

namespace mt {

// One path component that cannot leave its folder: ^[a-z0-9][a-z0-9._-]{0,62}$. INVALID_ARGUMENT
// names `what` and the value.
absl::Status ValidateComponent(absl::string_view what, absl::string_view value);

std::string StepFolderName(int64_t step);  // "step-00000020"
absl::StatusOr<int64_t> ParseStepFolderName(absl::string_view name);
std::string ShardFileName(int rank);  // "shard-r3.safetensors"
// Validated paths.
absl::StatusOr<std::string> JobFolder(const std::string& root, absl::string_view job_id);
absl::StatusOr<std::string> CheckpointFolder(const std::string& root, absl::string_view job_id,
                                             int64_t step);
absl::StatusOr<std::string> CheckpointFilePath(const std::string& root, absl::string_view job_id,
                                               int64_t step, absl::string_view file);

// Names, sizes, digests and boxes are possible, and the coverage is exact (CheckCoverage).
absl::Status ValidateManifest(const v1::CheckpointManifest& manifest);

absl::StatusOr<std::string> ManifestToJson(const v1::CheckpointManifest& manifest);
// DATA_LOSS if it is not JSON or not valid; FAILED_PRECONDITION if format_version is newer than
// this program.
absl::StatusOr<v1::CheckpointManifest> ManifestFromJson(absl::string_view json);

// Makes the checkpoint exist: manifest to a temporary name, sync, rename, sync of the folder, then
// the pointer `latest`. Idempotent. The files must be durable before. INVALID_ARGUMENT or
// DATA_LOSS: not a manifest to commit.
absl::Status CommitManifest(Env* env, const std::string& root,
                            const v1::CheckpointManifest& manifest);

// NOT_FOUND if it was never committed.
absl::StatusOr<v1::CheckpointManifest> ReadManifest(Env* env, const std::string& root,
                                                    absl::string_view job_id, int64_t step);
// Steps with a manifest, oldest first; empty if the job has none. Manifests are not opened.
absl::StatusOr<std::vector<int64_t>> ListCommitted(Env* env, const std::string& root,
                                                   absl::string_view job_id);
// Whole files of this root, committed or not, by job and step (for Register): what a rename has
// given its final name.
absl::StatusOr<std::vector<v1::HeldCheckpoint>> ListHeld(Env* env, const std::string& root);

// The manifest goes first (from then on the checkpoint does not exist), then the files. Idempotent;
// fine if absent.
absl::Status DeleteCheckpoint(Env* env, const std::string& root, absl::string_view job_id,
                              int64_t step);
// Removes temporary files that a crash left, of all jobs. Call when nobody writes below `root`.
absl::Status RemoveTemporaries(Env* env, const std::string& root);

// What kept a checkpoint from the store, in the word of the metric: disk_full | permission | io.
const char* CheckpointFailureReason(const absl::Status& status);

}  // namespace mt
