// How the files of a dataset appear, whatever wrote them: PREFIX.idx last of all.
//
// Invariant: if PREFIX.idx exists, all that belongs to it is whole and on stable storage. So whatever is stopped at whatever moment, a
// reader finds the old dataset, the new one, or no PREFIX.idx; and never a manifest or losses of another PREFIX.bin beside PREFIX.idx.
//
// All that takes room is written before the old dataset is touched: a full disk leaves it as it was.
#pragma once

#include <memory>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/dataset_manifest.h"
#include "worker/data/spool_file.h"

namespace mt {

// The folder that PREFIX's files lie in.
std::string DatasetFolder(const std::string& prefix);
std::string BuildJournalPath(const std::string& prefix);
std::string BadLinesPath(const std::string& prefix);

// The lock of who writes a dataset: taken before anything of it is changed, or read to go on from. PREFIX.lock goes when it is let go.
// Makes the folder. FAILED_PRECONDITION: another process is writing this dataset.
absl::StatusOr<std::unique_ptr<FileLock>> LockDataset(Env* env, const std::string& prefix);

// Fine if it is not there.
absl::Status RemoveIfThere(Env* env, const std::string& path);

// WriteFileAtomically for who holds the dataset's lock: the temporary name is PATH.partial, so that what a killed writer left is
// written over by the next one, and not left for ever.
absl::Status ReplaceLockedFile(Env* env, const std::string& path, absl::string_view contents);

// Writes PREFIX.manifest.json.partial; durable afterwards. After an error it is not there.
absl::StatusOr<SpoolFile::State> StageManifest(Env* env, const std::string& prefix,
                                               const DatasetManifest& manifest);

// What a dataset has besides PREFIX.bin and PREFIX.idx.
struct DatasetExtras {
  bool manifest = false;
  bool loss = false;
  bool bad_lines = false;
};

// Shows the files named PREFIX.*.partial, all of them synced, in place of what is there. It renames and removes, and writes nothing.
// Each of these steps is durable before the next: the old PREFIX.idx goes; `extras` get their names, and of what is not among them an
// old one goes; PREFIX.bin gets its name, and PREFIX.idx. Stopped, it can be called again as long as PREFIX.idx.partial is there.
absl::Status CommitDataset(Env* env, const std::string& prefix, const DatasetExtras& extras);

}  // namespace mt
