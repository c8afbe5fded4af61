#include "worker/data/dataset_commit.h"

#include <filesystem>

#include "common/hash.h"
#include "worker/data/loss_file.h"

namespace mt {

namespace {

class DatasetLock : public FileLock {
 public:
  DatasetLock(Env* env, std::string path, std::unique_ptr<FileLock> lock)
      : env_(env), path_(std::move(path)), lock_(std::move(lock)) {}
  // While it is held, so that it is nobody else's.
  ~DatasetLock() override { env_->RemoveFile(path_).IgnoreError(); }

 private:
  Env* const env_;
  const std::string path_;
  const std::unique_ptr<FileLock> lock_;
};

// `path` gets its name, unless a commit that was stopped has given it, or goes.
absl::Status Show(Env* env, const std::string& path, bool is_there) {
  if (!is_there) return RemoveIfThere(env, path);
  const absl::Status status = env->Rename(path + ".partial", path);
  return absl::IsNotFound(status) && Exists(env, path) ? absl::OkStatus() : status;
}

absl::Status WriteSynced(Env* env, const std::string& path, absl::string_view contents) {
  MT_ASSIGN_OR_RETURN(const auto file, env->NewWritableFile(path, Env::WriteMode::kTruncate));
  MT_RETURN_IF_ERROR(file->Append(contents));
  MT_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

}  // namespace

absl::Status RemoveIfThere(Env* env, const std::string& path) {
  const absl::Status status = env->RemoveFile(path);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::StatusOr<std::unique_ptr<FileLock>> LockDataset(Env* env, const std::string& prefix) {
  MT_RETURN_IF_ERROR(env->CreateDirectories(DatasetFolder(prefix)));
  const std::string path = prefix + ".lock";
  absl::StatusOr<std::unique_ptr<FileLock>> lock = env->Lock(path);
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(prefix, ": another process is writing this dataset"));
  }
  if (!lock.ok()) return lock.status();
  return std::make_unique<DatasetLock>(env, path, *std::move(lock));
}

std::string DatasetFolder(const std::string& prefix) {
  const std::string folder = std::filesystem::path(prefix).parent_path().string();
  return folder.empty() ? "." : folder;
}

std::string BuildJournalPath(const std::string& prefix) { return prefix + ".journal.json"; }
std::string BadLinesPath(const std::string& prefix) { return prefix + ".bad.jsonl"; }

absl::Status ReplaceLockedFile(Env* env, const std::string& path, absl::string_view contents) {
  const std::string temporary = path + ".partial";
  absl::Status status = WriteSynced(env, temporary, contents);
  if (status.ok()) status = env->Rename(temporary, path);
  if (!status.ok()) {
    env->RemoveFile(temporary).IgnoreError();
    return status;
  }
  return env->SyncDirectory(DatasetFolder(path));
}

absl::StatusOr<SpoolFile::State> StageManifest(Env* env, const std::string& prefix,
                                               const DatasetManifest& manifest) {
  const std::string json = DatasetManifestJson(manifest);
  const std::string path = DatasetManifestPath(prefix) + ".partial";
  absl::Status status = WriteSynced(env, path, json);
  if (status.ok()) status = env->SyncDirectory(DatasetFolder(prefix));
  if (!status.ok()) {
    env->RemoveFile(path).IgnoreError();
    return status;
  }
  return SpoolFile::State{json.size(), Xxh3Hex(json)};
}

absl::Status CommitDataset(Env* env, const std::string& prefix, const DatasetExtras& extras) {
  const std::string folder = DatasetFolder(prefix);
  MT_RETURN_IF_ERROR(RemoveIfThere(env, prefix + ".idx"));
  MT_RETURN_IF_ERROR(env->SyncDirectory(folder));
  MT_RETURN_IF_ERROR(Show(env, DatasetManifestPath(prefix), extras.manifest));
  MT_RETURN_IF_ERROR(Show(env, BadLinesPath(prefix), extras.bad_lines));
  MT_RETURN_IF_ERROR(Show(env, LossPath(prefix), extras.loss));
  MT_RETURN_IF_ERROR(Show(env, prefix + ".bin", true));
  MT_RETURN_IF_ERROR(env->SyncDirectory(folder));
  MT_RETURN_IF_ERROR(env->Rename(prefix + ".idx.partial", prefix + ".idx"));
  return env->SyncDirectory(folder);
}

}  // namespace mt
