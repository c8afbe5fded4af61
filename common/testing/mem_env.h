// Files in memory with the faults of a real disk: what was not synced is gone after Crash(), the disk fills up, reads break.
//
// The model (of a journalling file system at its strictest): a file's bytes survive a crash up to its last Sync; a name
// (creation, rename, removal, folder) survives once SyncDirectory of its folder was called after the change. On Crash() each
// folder goes back to its names at its last SyncDirectory, each file to its bytes at its last Sync. Creating a folder by
// CreateDirectories is durable at once (the real Env's callers sync only the leaf; folders hold no data). Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "common/env.h"

namespace mt {

class MemEnv : public Env {
 public:
  MemEnv();
  ~MemEnv() override;

  // Power loss: open file objects answer UNAVAILABLE from now on, locks are free, unsynced bytes and names are lost.
  void Crash();
  // Process death without power loss: open file objects and locks are gone, the data stays.
  void KillProcess();
  // Total bytes of all files at most; Append beyond it answers RESOURCE_EXHAUSTED. nullopt = no limit.
  void SetCapacity(std::optional<uint64_t> bytes);
  // Called before each operation ("read", "append", "sync", "rename", "create", "sync_directory", "remove", "truncate") with the path;
  // a non-OK answer is the operation's result. Null = none.
  void SetFault(
      std::function<absl::Status(absl::string_view operation, const std::string& path)> fault);
  // Flips one bit of a file in place, as a bad disk would. NOT_FOUND; OUT_OF_RANGE.
  absl::Status CorruptByte(const std::string& path, uint64_t offset);
  // Cuts a file in place, as a bad disk would. NOT_FOUND.
  absl::Status TruncateFile(const std::string& path, uint64_t size);
  uint64_t UsedBytes();

  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path,
                                                                WriteMode mode) override;
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> NewRandomAccessFile(
      const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Truncate(const std::string& path, uint64_t size) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status CreateDirectories(const std::string& path) override;
  absl::Status RemoveFile(const std::string& path) override;
  absl::Status RemoveTree(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  absl::StatusOr<FileInfo> Stat(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override;
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override;

  struct State;  // shared with the open files

 private:
  std::shared_ptr<State> state_;
};

}  // namespace mt
