// One line per event to stderr (and nothing else): time, level, process tag, text. Thread-safe.
#pragma once

#include <sstream>
#include <string>

namespace mt {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

void SetLogLevel(LogLevel level);
// Shown in every line, e.g. "coordinator", "worker gpu07", "rank 3".
void SetLogTag(std::string tag);
void Log(LogLevel level, const std::string& text);
bool LogEnabled(LogLevel level);

class LogMessage {
 public:
  explicit LogMessage(LogLevel level) : level_(level) {}
  ~LogMessage() { Log(level_, stream_.str()); }
  template <typename T>
  LogMessage& operator<<(const T& value) {
    stream_ << value;
    return *this;
  }

 private:
  LogLevel level_;
  std::ostringstream stream_;
};

}  // namespace mt

#define MT_LOG(level)                                \
  if (!::mt::LogEnabled(::mt::LogLevel::k##level)) { \
  } else                                             \
    ::mt::LogMessage(::mt::LogLevel::k##level)
