#include "worker/comm/shared_segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace mt {
namespace {

static_assert(std::atomic<uint32_t>::is_always_lock_free &&
              sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

absl::StatusOr<char*> Map(int fd, size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED)
    return absl::ResourceExhaustedError(
        absl::StrCat("mmap of ", bytes, " shared bytes: ", std::strerror(errno)));
  return static_cast<char*>(data);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Create(size_t bytes) {
  const int fd = memfd_create("mt-group", MFD_CLOEXEC);
  if (fd < 0)
    return absl::ResourceExhaustedError(absl::StrCat("memfd_create: ", std::strerror(errno)));
  if (ftruncate(fd, bytes) != 0 || fallocate(fd, 0, 0, bytes) != 0) {
    const int error = errno;
    close(fd);
    return absl::ResourceExhaustedError(
        absl::StrCat("shared memory of ", bytes, " bytes: ", std::strerror(error)));
  }
  const absl::StatusOr<char*> data = Map(fd, bytes);
  if (!data.ok()) {
    close(fd);
    return data.status();
  }
  return std::unique_ptr<SharedSegment>(new SharedSegment(fd, *data, bytes));
}

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Open(int pid, int fd, size_t bytes) {
  const std::string path = absl::StrCat("/proc/", pid, "/fd/", fd);
  const int own = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (own < 0)
    return absl::UnavailableError(
        absl::StrCat("shared memory ", path, " of a peer: ", std::strerror(errno)));
  struct stat info;
  absl::StatusOr<char*> data =
      absl::UnavailableError(absl::StrCat("shared memory ", path, " is not the peer's segment"));
  if (fstat(own, &info) == 0 && S_ISREG(info.st_mode) && info.st_size >= static_cast<off_t>(bytes))
    data = Map(own, bytes);
  close(own);  // the mapping holds it
  if (!data.ok()) return data.status();
  return std::unique_ptr<SharedSegment>(new SharedSegment(-1, *data, bytes));
}

SharedSegment::~SharedSegment() {
  munmap(data_, bytes_);
  CloseDescriptor();
}

void SharedSegment::CloseDescriptor() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

bool FutexWait(std::atomic<uint32_t>* word, uint32_t expected, absl::Duration timeout) {
  const timespec limit = absl::ToTimespec(timeout);
  const long result = syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT, expected,
                              &limit, nullptr, 0);
  return result == 0 || errno != ETIMEDOUT;
}

void FutexWakeAll(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

absl::StatusOr<std::unique_ptr<ProcessWatch>> ProcessWatch::Open(int pid) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0)
    return absl::UnavailableError(
        absl::StrCat("pidfd_open of process ", pid, ": ", std::strerror(errno)));
  return std::unique_ptr<ProcessWatch>(new ProcessWatch(fd));
}

ProcessWatch::~ProcessWatch() { close(fd_); }

bool ProcessWatch::Exited() const {
  pollfd descriptor{fd_, POLLIN, 0};
  return poll(&descriptor, 1, 0) > 0 && (descriptor.revents & POLLIN) != 0;
}

}  // namespace mt
