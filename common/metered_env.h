// An Env whose bytes are counted, so that whoever waits for much of them can tell a slow disk from one that stands still.
//
// A file that is written is synced every 256 MiB: what was counted is then on its way to the disk and not only in memory, and no
// sync takes much longer than the disk needs for as many bytes.
#pragma once

#include <atomic>
#include <memory>

#include "common/env.h"

namespace mt {

class MeteredEnv : public Env {
 public:
  // `inner` outlives it and its files; `moved` (bytes read and written) is shared with whoever looks.
  MeteredEnv(Env* inner, std::shared_ptr<std::atomic<int64_t>> moved)
      : inner_(inner), moved_(std::move(moved)) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path,
                                                                WriteMode mode) override;
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> NewRandomAccessFile(
      const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return inner_->Rename(from, to);
  }
  absl::Status Truncate(const std::string& path, uint64_t size) override {
    return inner_->Truncate(path, size);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    return inner_->SyncDirectory(path);
  }
  absl::Status CreateDirectories(const std::string& path) override {
    return inner_->CreateDirectories(path);
  }
  absl::Status RemoveFile(const std::string& path) override { return inner_->RemoveFile(path); }
  absl::Status RemoveTree(const std::string& path) override { return inner_->RemoveTree(path); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    return inner_->List(path);
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override { return inner_->Stat(path); }
  absl::StatusOr<FileInfo> StatTarget(const std::string& path) override {
    return inner_->StatTarget(path);
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override {
    return inner_->Lock(path);
  }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override {
    return inner_->FreeBytes(path);
  }
  Env* ForSharedFiles() override { return inner_->ForSharedFiles(); }  // not counted

 private:
  Env* const inner_;
  const std::shared_ptr<std::atomic<int64_t>> moved_;
};

}  // namespace mt
