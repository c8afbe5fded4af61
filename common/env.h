// Files are reached through Env, so that a test can lose unsynced writes, fill the disk or break a read.
//
// Rules: paths are absolute or relative to the working directory; errors are NOT_FOUND, ALREADY_EXISTS,
// RESOURCE_EXHAUSTED (disk full: ENOSPC, EDQUOT), PERMISSION_DENIED or DATA_LOSS (EIO) and name path and errno.
// What was not Sync()ed may be lost in a crash; a rename or creation is durable only after SyncDirectory of its folder.
// Env is thread-safe; a file object is used by one thread at a time (RandomAccessFile: by many).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>
#include "absl/strings/string_view.h"

#include "common/status.h"

namespace mt {

class WritableFile {
 public:
  virtual ~WritableFile() = default;  // closes, dropping errors
  virtual absl::Status Append(absl::string_view data) = 0;
  virtual absl::Status Sync() = 0;  // data and size are on stable storage afterwards
  virtual absl::Status Close() = 0;
};

class RandomAccessFile {
 public:
  virtual ~RandomAccessFile() = default;
  // Reads up to `size` bytes at `offset` into `buffer`; fewer only at the end of the file. Returns the count.
  virtual absl::StatusOr<size_t> Read(uint64_t offset, size_t size, char* buffer) const = 0;
  virtual absl::StatusOr<uint64_t> Size() const = 0;
};

class FileLock {
 public:
  virtual ~FileLock() = default;  // unlocks
};

struct FileInfo {
  uint64_t size_bytes = 0;
  bool is_directory = false;
  bool is_symlink = false;
  bool is_special = false;  // no file, folder or link: a pipe, a socket, a device
  int64_t modified_ns = 0;  // changes with every write; only for comparing
};

class Env {
 public:
  virtual ~Env() = default;

  enum class WriteMode { kTruncate, kAppend };
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path,
                                                                        WriteMode mode) = 0;
  // Never waits; INVALID_ARGUMENT for a pipe.
  virtual absl::StatusOr<std::unique_ptr<RandomAccessFile>> NewRandomAccessFile(
      const std::string& path) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // Cuts a file off behind its first `size` bytes; INVALID_ARGUMENT if it has fewer.
  virtual absl::Status Truncate(const std::string& path, uint64_t size) = 0;
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  virtual absl::Status CreateDirectories(const std::string& path) = 0;  // fine if it exists
  virtual absl::Status RemoveFile(const std::string& path) = 0;
  virtual absl::Status RemoveTree(
      const std::string& path) = 0;  // fine if absent; never follows links
  virtual absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) = 0;                                    // names, sorted
  virtual absl::StatusOr<FileInfo> Stat(const std::string& path) = 0;  // does not follow a link
  // Of what a link points to. Where there are no links it is Stat.
  virtual absl::StatusOr<FileInfo> StatTarget(const std::string& path) { return Stat(path); }
  // Exclusive advisory lock on a file that it creates. FAILED_PRECONDITION if another process holds it. The holder may remove the
  // file before it lets go: who comes then locks a new one, and one alone holds it at any time.
  virtual absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) = 0;
  virtual absl::StatusOr<uint64_t> FreeBytes(const std::string& path) = 0;

  // The same files; what is made through it is for whomever the umask lets (0666 and 0777 without it): datasets, which a team reads.
  // It lives as long as this one.
  virtual Env* ForSharedFiles() { return this; }

  // The operating system's files; lives forever. What is made through it is the user's alone (0600 and 0700), like keys and state.
  static Env* Real();
};

bool Exists(Env* env, const std::string& path);
// Whole file; INVALID_ARGUMENT if larger than `max_bytes`.
absl::StatusOr<std::string> ReadFile(Env* env, const std::string& path,
                                     uint64_t max_bytes = 64 << 20);
// Temporary name, sync, rename, sync of the folder: a reader sees the old file or the new one, also after a crash.
absl::Status WriteFileAtomically(Env* env, const std::string& path, absl::string_view contents);
std::string JoinPath(absl::string_view folder, absl::string_view name);

}  // namespace mt
