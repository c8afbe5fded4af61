#include "common/env.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

namespace mt {
namespace {

absl::Status ErrnoStatus(int error, absl::string_view what, const std::string& path) {
  const std::string message = absl::StrCat(what, " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case EIO:
      return absl::DataLossError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::Status TooShort(const std::string& path, uint64_t has, uint64_t wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("truncate ", path, ": it has ", has, " bytes, fewer than ", wanted));
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

class PosixWritableFile : public WritableFile {
 public:
  PosixWritableFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

  absl::Status Append(absl::string_view data) override {
    while (!data.empty()) {
      const ssize_t count = write(fd_.get(), data.data(), data.size());
      if (count < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, "write", path_);
      }
      data.remove_prefix(count);
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override {
    return fdatasync(fd_.get()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "fdatasync", path_);
  }
  absl::Status Close() override {
    const int fd = fd_.release();
    if (fd >= 0 && close(fd) != 0) return ErrnoStatus(errno, "close", path_);
    return absl::OkStatus();
  }

 private:
  FileDescriptor fd_;
  std::string path_;
};

class PosixRandomAccessFile : public RandomAccessFile {
 public:
  PosixRandomAccessFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

  absl::StatusOr<size_t> Read(uint64_t offset, size_t size, char* buffer) const override {
    size_t done = 0;
    while (done < size) {
      const ssize_t count =
          pread(fd_.get(), buffer + done, size - done, static_cast<off_t>(offset + done));
      if (count < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, "read", path_);
      }
      if (count == 0) break;
      done += count;
    }
    return done;
  }
  absl::StatusOr<uint64_t> Size() const override {
    struct stat info;
    if (fstat(fd_.get(), &info) != 0) return ErrnoStatus(errno, "stat", path_);
    return static_cast<uint64_t>(info.st_size);
  }

 private:
  FileDescriptor fd_;
  std::string path_;
};

class PosixFileLock : public FileLock {
 public:
  explicit PosixFileLock(int fd) : fd_(fd) {}

 private:
  FileDescriptor fd_;
};

class PosixEnv : public Env {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path,
                                                                WriteMode mode) override {
    const int flags =
        O_WRONLY | O_CREAT | O_CLOEXEC | (mode == WriteMode::kAppend ? O_APPEND : O_TRUNC);
    const int fd = open(path.c_str(), flags, 0600);
    if (fd < 0) return ErrnoStatus(errno, "open for writing", path);
    return std::make_unique<PosixWritableFile>(fd, path);
  }
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> NewRandomAccessFile(
      const std::string& path) override {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ErrnoStatus(errno, "open", path);
    return std::make_unique<PosixRandomAccessFile>(fd, path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return rename(from.c_str(), to.c_str()) == 0
               ? absl::OkStatus()
               : ErrnoStatus(errno, "rename", absl::StrCat(from, " to ", to));
  }
  absl::Status Truncate(const std::string& path, uint64_t size) override {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "truncate", path);
    if (static_cast<uint64_t>(info.st_size) < size) return TooShort(path, info.st_size, size);
    return truncate(path.c_str(), static_cast<off_t>(size)) == 0
               ? absl::OkStatus()
               : ErrnoStatus(errno, "truncate", path);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    const FileDescriptor fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd.get() < 0) return ErrnoStatus(errno, "open folder", path);
    return fsync(fd.get()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "fsync folder", path);
  }
  absl::Status CreateDirectories(const std::string& path) override {
    for (size_t end = 1; end <= path.size(); ++end) {
      if (end < path.size() && path[end] != '/') continue;
      const std::string prefix = path.substr(0, end);
      if (mkdir(prefix.c_str(), 0700) != 0 && errno != EEXIST) {
        struct stat info;  // EROFS and EACCES come before EEXIST on some file systems
        const int error = errno;
        if (stat(prefix.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
          return ErrnoStatus(error, "create folder", prefix);
      }
    }
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "create folder", path);
    if (!S_ISDIR(info.st_mode))
      return ErrnoStatus(EEXIST, "create folder (a file is in the way)", path);
    return absl::OkStatus();
  }
  absl::Status RemoveFile(const std::string& path) override {
    return unlink(path.c_str()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "remove", path);
  }
  absl::Status RemoveTree(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    return error ? ErrnoStatus(error.value(), "remove folder", path) : absl::OkStatus();
  }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(path.c_str()), closedir);
    if (folder == nullptr) return ErrnoStatus(errno, "list", path);
    std::vector<std::string> names;
    while (const dirent* entry = readdir(folder.get())) {
      const absl::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override {
    struct stat info;
    if (lstat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat", path);
    return FileInfo{static_cast<uint64_t>(info.st_size), S_ISDIR(info.st_mode),
                    S_ISLNK(info.st_mode),
                    info.st_mtim.tv_sec * int64_t{1'000'000'000} + info.st_mtim.tv_nsec};
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return ErrnoStatus(errno, "open lock", path);
    auto lock = std::make_unique<PosixFileLock>(fd);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK)
        return absl::FailedPreconditionError(
            absl::StrCat("lock ", path, " is held by another process"));
      return ErrnoStatus(errno, "lock", path);
    }
    return lock;
  }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override {
    struct statvfs info;
    if (statvfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, "statvfs", path);
    return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  }
};

}  // namespace

Env* Env::Real() {
  static auto* env = new PosixEnv;
  return env;
}

bool Exists(Env* env, const std::string& path) { return env->Stat(path).ok(); }

absl::StatusOr<std::string> ReadFile(Env* env, const std::string& path, uint64_t max_bytes) {
  MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(path));
  MT_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (size > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", size, " bytes, more than the ", max_bytes, " that are read"));
  }
  std::string contents(size, '\0');
  MT_ASSIGN_OR_RETURN(const size_t count, file->Read(0, size, contents.data()));
  contents.resize(count);
  return contents;
}

absl::Status WriteFileAtomically(Env* env, const std::string& path, absl::string_view contents) {
  static std::atomic<uint64_t> counter{0};
  const std::string temporary = absl::StrCat(path, ".tmp", getpid(), ".", ++counter);
  auto write = [&]() -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto file,
                        env->NewWritableFile(temporary, Env::WriteMode::kTruncate));
    MT_RETURN_IF_ERROR(file->Append(contents));
    MT_RETURN_IF_ERROR(file->Sync());
    MT_RETURN_IF_ERROR(file->Close());
    return env->Rename(temporary, path);
  };
  if (absl::Status status = write(); !status.ok()) {
    (void)env->RemoveFile(temporary);
    return status;
  }
  const size_t slash = path.rfind('/');
  return env->SyncDirectory(slash == std::string::npos ? "."
                            : slash == 0               ? "/"
                                                       : path.substr(0, slash));
}

std::string JoinPath(absl::string_view folder, absl::string_view name) {
  if (folder.empty()) return std::string(name);
  return absl::StrCat(folder, folder.back() == '/' ? "" : "/", name);
}

}  // namespace mt
