// MT_CHECK: for programmer errors only (a broken invariant), never for bad input. Prints where and why, then aborts.
#pragma once

#include <sstream>
#include <string>

namespace mt {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);

class CheckMessage {
 public:
  CheckMessage(const char* file, int line, const char* condition)
      : file_(file), line_(line), condition_(condition) {}
  [[noreturn]] ~CheckMessage() { CheckFailed(file_, line_, condition_, stream_.str()); }
  template <typename T>
  CheckMessage& operator<<(const T& value) {
    stream_ << value;
    return *this;
  }

 private:
  const char* file_;
  int line_;
  const char* condition_;
  std::ostringstream stream_;
};

}  // namespace mt

#define MT_CHECK(condition) \
  while (!(condition)) ::mt::CheckMessage(__FILE__, __LINE__, #condition)
#define MT_CHECK_OK(expression)                                     \
  do {                                                              \
    const absl::Status mt_check_status_ = (expression);             \
    MT_CHECK(mt_check_status_.ok()) << mt_check_status_.ToString(); \
  } while (false)
