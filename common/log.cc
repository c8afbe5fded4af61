#include "common/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/check.h"

namespace mt {
namespace {

std::atomic<LogLevel> minimum_level{LogLevel::kInfo};
std::mutex tag_mutex;
std::string& Tag() {
  static auto* tag = new std::string("mt");
  return *tag;
}

}  // namespace

void SetLogLevel(LogLevel level) { minimum_level = level; }

void SetLogTag(std::string tag) {
  std::lock_guard lock(tag_mutex);
  Tag() = std::move(tag);
}

bool LogEnabled(LogLevel level) { return level >= minimum_level.load(std::memory_order_relaxed); }

void Log(LogLevel level, const std::string& text) {
  static constexpr char kLetters[] = "DIWE";
  std::string line;
  {
    std::lock_guard lock(tag_mutex);
    line = absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
                        " ", std::string(1, kLetters[static_cast<int>(level)]), " [", Tag(), "] ",
                        text, "\n");
  }
  // One write, so that lines of several processes on one pipe do not mix.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

void CheckFailed(const char* file, int line, const char* condition, const std::string& message) {
  Log(LogLevel::kError, absl::StrCat(file, ":", line, ": check failed: ", condition,
                                     message.empty() ? "" : ": ", message));
  std::abort();
}

}  // namespace mt
