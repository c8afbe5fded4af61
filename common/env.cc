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
  // Modes of what is made, before the umask.
  PosixEnv(mode_t file_mode, mode_t folder_mode, Env* for_shared_files)
      : file_mode_(file_mode),
        folder_mode_(folder_mode),
        for_shared_files_(for_shared_files == nullptr ? this : for_shared_files) {}
  Env* ForSharedFiles() override { return for_shared_files_; }

  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path,
                                                                WriteMode mode) override {
    const int flags =
        O_WRONLY | O_CREAT | O_CLOEXEC | (mode == WriteMode::kAppend ? O_APPEND : O_TRUNC);
    const int fd = open(path.c_str(), flags, file_mode_);
    if (fd < 0) return ErrnoStatus(errno, "open for writing", path);
    return std::make_unique<PosixWritableFile>(fd, path);
  }
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> NewRandomAccessFile(
      const std::string& path) override {
    // A pipe would keep the open waiting for someone who writes to it.
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return ErrnoStatus(errno, "open", path);
    auto file = std::make_unique<PosixRandomAccessFile>(fd, path);
    struct stat info;
    if (fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat", path);
    if (S_ISFIFO(info.st_mode)) {
      return absl::InvalidArgumentError(
          absl::StrCat("open ", path, ": a pipe, not a file; write what it gives to a file first"));
    }
    return file;
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
      if (mkdir(prefix.c_str(), folder_mode_) != 0 && errno != EEXIST) {
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
    return InfoOf(info);
  }
  absl::StatusOr<FileInfo> StatTarget(const std::string& path) override {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat", path);
    return InfoOf(info);
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override {
    // Whoever held it may have removed the file since it was opened here. A lock on a file that has lost its name keeps nobody out.
    constexpr int kTries = 100;
    for (int i = 0; i < kTries; ++i) {
      const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, file_mode_);
      if (fd < 0) return ErrnoStatus(errno, "open lock", path);
      auto lock = std::make_unique<PosixFileLock>(fd);
      if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) break;
        return ErrnoStatus(errno, "lock", path);
      }
      struct stat locked, named;
      if (fstat(fd, &locked) != 0) return ErrnoStatus(errno, "stat lock", path);
      if (stat(path.c_str(), &named) != 0) {
        if (errno == ENOENT) continue;
        return ErrnoStatus(errno, "stat lock", path);
      }
      if (locked.st_dev == named.st_dev && locked.st_ino == named.st_ino) return lock;
    }
    return absl::FailedPreconditionError(
        absl::StrCat("lock ", path, " is held by another process"));
  }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override {
    struct statvfs info;
    if (statvfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, "statvfs", path);
    return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  }

 private:
  static FileInfo InfoOf(const struct stat& info) {
    const mode_t mode = info.st_mode;
    return {.size_bytes = static_cast<uint64_t>(info.st_size),
            .is_directory = S_ISDIR(mode),
            .is_symlink = S_ISLNK(mode),
            .is_special = !S_ISREG(mode) && !S_ISDIR(mode) && !S_ISLNK(mode),
            .modified_ns = info.st_mtim.tv_sec * int64_t{1'000'000'000} + info.st_mtim.tv_nsec};
  }

  const mode_t file_mode_, folder_mode_;
  Env* const for_shared_files_;
};

}  // namespace

Env* Env::Real() {
  static auto* shared = new PosixEnv(0666, 0777, nullptr);
  static auto* env = new PosixEnv(0600, 0700, shared);
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
