// Memory that the processes of one host share, without a name in any file system: one process makes
// it (memfd), the others open it through /proc/<pid>/fd. It goes away with the last process that
// maps it, however they end.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/status.h"

namespace mt {

class SharedSegment {
 public:
  // All pages are there when this returns: RESOURCE_EXHAUSTED instead of a signal at first touch.
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Create(size_t bytes);
  // The segment that process `pid` holds as `fd`, at least `bytes` long. UNAVAILABLE if that
  // process is gone.
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Open(int pid, int fd, size_t bytes);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  int fd() const { return fd_; }
  void CloseDescriptor();  // nobody can open it any more; mappings stay

 private:
  SharedSegment(int fd, char* data, size_t bytes) : fd_(fd), data_(data), bytes_(bytes) {}
  int fd_;
  char* data_;
  size_t bytes_;
};

// Sleeps while *word == expected, at most `timeout`. False if the time ran out.
bool FutexWait(std::atomic<uint32_t>* word, uint32_t expected, absl::Duration timeout);
void FutexWakeAll(std::atomic<uint32_t>* word);

// A process, held by a pidfd so that its number cannot come to mean another one.
class ProcessWatch {
 public:
  // UNAVAILABLE if it is gone already.
  static absl::StatusOr<std::unique_ptr<ProcessWatch>> Open(int pid);
  ~ProcessWatch();
  bool Exited() const;  // also before its parent has reaped it

 private:
  explicit ProcessWatch(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace mt
