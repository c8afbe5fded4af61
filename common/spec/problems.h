// The list that the parts of validation write to; internal to validate*.cc.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/spec/validate.h"
#include "mt/v1/spec.pb.h"

namespace mt {

class Problems {
 public:
  // "key = value: what is wrong; what would work".
  template <typename... Parts>
  void Add(absl::string_view key, const Parts&... parts) {
    lines_.push_back(absl::StrCat(key, " = ", parts...));
  }
  void AddLine(std::string line) { lines_.push_back(std::move(line)); }

  // True if the size is sane; says what is wrong otherwise.
  bool Size(absl::string_view key, int64_t value, int64_t limit) {
    if (value == 0) {
      AddLine(absl::StrCat(key, " is not set; set it to a number from 1 to ", limit));
      return false;
    }
    return Within(key, value, 1, limit);
  }
  bool Within(absl::string_view key, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return true;
    Add(key, value, ": out of range; use ", low, " to ", high);
    return false;
  }
  void Positive(absl::string_view key, double value) {
    if (!(value > 0) || !std::isfinite(value)) Add(key, value, ": must be greater than 0");
  }
  void NotNegative(absl::string_view key, double value) {
    if (!(value >= 0) || !std::isfinite(value)) Add(key, value, ": must not be negative; 0 is off");
  }

  bool empty() const { return lines_.empty(); }
  std::vector<std::string> Take() { return std::move(lines_); }

  static std::string Or(const std::vector<int64_t>& numbers) {
    return absl::StrJoin(numbers, " or ");
  }

 private:
  std::vector<std::string> lines_;
};

// The model section by itself, and with the data that it is to see.
void CheckModelSection(const v1::JobSpec& spec, Problems* problems);
// The data section, with the vocabulary that its ids are of.
void CheckDataSection(const v1::JobSpec& spec, Problems* problems);

}  // namespace mt
