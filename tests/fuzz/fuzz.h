// What the fuzz targets share. A target is a function of bytes that must return, whatever they are:
// no crash, no leak, no undefined behaviour, no unbounded memory; and where it says so with
// MT_CHECK, no broken promise either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "common/check.h"

namespace mt {

// Takes typed values from the front of the input; zeros when it is used up.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  template <typename T>
  T Take() {
    T value{};
    const size_t count = std::min(sizeof(T), rest_.size());
    std::memcpy(&value, rest_.data(), count);
    rest_.remove_prefix(count);
    return value;
  }
  bool empty() const { return rest_.empty(); }
  std::string Rest() const { return std::string(rest_); }

 private:
  absl::string_view rest_;
};

}  // namespace mt
