#include "common/disk_size.h"

#include "absl/strings/numbers.h"

namespace mt {

absl::StatusOr<int64_t> ParseDiskSize(absl::string_view text) {
  constexpr absl::string_view kUnits = "KMGT";
  absl::string_view number = text;
  double unit = 1;
  if (!number.empty() && kUnits.find(number.back()) != absl::string_view::npos) {
    for (size_t i = 0; i <= kUnits.find(number.back()); ++i) unit *= 1000;
    number.remove_suffix(1);
  }
  double value = 0;
  const bool digits =
      !number.empty() && number.find_first_not_of("0123456789.") == absl::string_view::npos;
  if (!digits || !absl::SimpleAtod(number, &value) || value * unit < 1 || value * unit > 1e18) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", text, "\" is not a size; write bytes, or a number with K, M, G or T, such as 200G"));
  }
  return static_cast<int64_t>(value * unit);
}

}  // namespace mt
