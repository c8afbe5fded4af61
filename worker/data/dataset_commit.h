// How the files of a dataset appear, whatever wrote them: PREFIX.idx last of all.
//
// Invariant: if PREFIX.idx exists, all that belongs to it is whole and on stable storage. So whatever is stopped at whatever moment, a
// reader finds the old dataset, the new one, or no PREFIX.idx; and never a manifest or losses of another PREFIX.bin beside PREFIX.idx.
#pragma once

#include <memory>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/dataset_manifest.h"

namespace mt {

// The folder that PREFIX's files lie in.
std::string DatasetFolder(const std::string& prefix);

// The lock of who writes a dataset: taken before anything of it is changed, or read to go on from.
// Makes the folder. FAILED_PRECONDITION: another process is building it.
absl::StatusOr<std::unique_ptr<FileLock>> LockDataset(Env* env, const std::string& prefix);

// Fine if it is not there.
absl::Status RemoveIfThere(Env* env, const std::string& path);

// WriteFileAtomically for who holds the dataset's lock: the temporary name is PATH.partial, so that what a killed writer left is
// written over by the next one, and not left for ever.
absl::Status ReplaceLockedFile(Env* env, const std::string& path, absl::string_view contents);

// Shows PREFIX.bin.partial, PREFIX.idx.partial and, with `has_loss`, PREFIX.loss.partial, all of them synced, in place of what is
// there. Each of these steps is durable before the next: the old PREFIX.idx goes; `manifest` is written, or, without one, an old
// one goes, and so do old losses; PREFIX.loss, PREFIX.bin and PREFIX.idx get their names.
absl::Status CommitDataset(Env* env, const std::string& prefix, bool has_loss,
                           const DatasetManifest* manifest);

}  // namespace mt
