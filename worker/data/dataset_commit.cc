#include "worker/data/dataset_commit.h"

#include <filesystem>

#include "worker/data/loss_file.h"

namespace mt {

absl::Status RemoveIfThere(Env* env, const std::string& path) {
  const absl::Status status = env->RemoveFile(path);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::StatusOr<std::unique_ptr<FileLock>> LockDataset(Env* env, const std::string& prefix) {
  MT_RETURN_IF_ERROR(env->CreateDirectories(DatasetFolder(prefix)));
  absl::StatusOr<std::unique_ptr<FileLock>> lock = env->Lock(prefix + ".lock");
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(prefix, ": another process is building this dataset"));
  }
  return lock;
}

std::string DatasetFolder(const std::string& prefix) {
  const std::string folder = std::filesystem::path(prefix).parent_path().string();
  return folder.empty() ? "." : folder;
}

absl::Status ReplaceLockedFile(Env* env, const std::string& path, absl::string_view contents) {
  const std::string temporary = path + ".partial";
  MT_ASSIGN_OR_RETURN(const auto file, env->NewWritableFile(temporary, Env::WriteMode::kTruncate));
  MT_RETURN_IF_ERROR(file->Append(contents));
  MT_RETURN_IF_ERROR(file->Sync());
  MT_RETURN_IF_ERROR(file->Close());
  MT_RETURN_IF_ERROR(env->Rename(temporary, path));
  return env->SyncDirectory(DatasetFolder(path));
}

absl::Status CommitDataset(Env* env, const std::string& prefix, bool has_loss,
                           const DatasetManifest* manifest) {
  const std::string folder = DatasetFolder(prefix);
  MT_RETURN_IF_ERROR(RemoveIfThere(env, prefix + ".idx"));
  MT_RETURN_IF_ERROR(env->SyncDirectory(folder));
  if (manifest != nullptr) {
    MT_RETURN_IF_ERROR(WriteDatasetManifest(env, prefix, *manifest));
  } else {
    MT_RETURN_IF_ERROR(RemoveIfThere(env, DatasetManifestPath(prefix)));
  }
  if (has_loss) {
    MT_RETURN_IF_ERROR(env->Rename(LossPath(prefix) + ".partial", LossPath(prefix)));
  } else {
    MT_RETURN_IF_ERROR(RemoveIfThere(env, LossPath(prefix)));
  }
  MT_RETURN_IF_ERROR(env->Rename(prefix + ".bin.partial", prefix + ".bin"));
  MT_RETURN_IF_ERROR(env->SyncDirectory(folder));
  MT_RETURN_IF_ERROR(env->Rename(prefix + ".idx.partial", prefix + ".idx"));
  return env->SyncDirectory(folder);
}

}  // namespace mt
