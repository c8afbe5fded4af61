// Fills boxes of any layout from a checkpoint of any other: plans which slices of which files meet
// which boxes, then reads only those files, and of those only the bytes it needs.
//
// Nothing is copied into a box before the file it comes from is known to be the one in the manifest
// (size and XXH3-128), and loading succeeds only if every element of every box was filled exactly
// once.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "kernels/abi/mt_backend.h"
#include "mt/v1/checkpoint.pb.h"
#include "worker/checkpoint/state.h"

namespace mt {

// Local path of a file of the checkpoint; may block while somebody fetches it.
using FileResolver = std::function<absl::StatusOr<std::string>(const v1::CheckpointFile& file)>;
// Looks in one folder.
FileResolver FolderResolver(std::string folder);

struct LoadOptions {
  Env* env = Env::Real();
  // Whose memory the boxes are in; null = host memory. Open. Every copy is done when LoadCheckpoint
  // returns.
  const mt_backend* device = nullptr;
};

struct LoadStatistics {
  int64_t files = 0;
  int64_t bytes = 0;  // copied into boxes
};

// Names of the files that LoadCheckpoint will ask for, in that order: they can be fetched
// beforehand.
absl::StatusOr<std::vector<std::string>> NeededFiles(const v1::CheckpointManifest& manifest,
                                                     const std::vector<TensorBox>& boxes);

// DATA_LOSS: a file is corrupt or the manifest does not cover a tensor; the next older checkpoint
// may serve. FAILED_PRECONDITION: the checkpoint is of another model (no such tensor, other shape
// or type). Messages name tensor and file. Errors of the resolver come back as they are. After an
// error the boxes' contents are undefined.
absl::Status LoadCheckpoint(const v1::CheckpointManifest& manifest,
                            const std::vector<TensorBox>& boxes, const FileResolver& resolver,
                            const LoadOptions& options = {}, LoadStatistics* statistics = nullptr);

// Size and digest of one file; DATA_LOSS says which differs and how. NOT_FOUND if it is absent.
absl::Status VerifyFile(Env* env, const std::string& path, const v1::CheckpointFile& file);
// The same for a file of a shared folder, of which there is no other copy: one that is missing beside its manifest is DATA_LOSS;
// without the manifest it is UNAVAILABLE, for then it is this node that does not see the folder.
absl::Status VerifyOnlyCopy(Env* env, const std::string& path, const v1::CheckpointFile& file);

// The layout-free digest, computed from the files' bytes (WeightsDigest of common/checkpoint
// computes it from the manifest).
absl::StatusOr<std::string> WeightsDigestOfFiles(const v1::CheckpointManifest& manifest,
                                                 const FileResolver& resolver,
                                                 Env* env = Env::Real());

}  // namespace mt
