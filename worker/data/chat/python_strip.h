// Python's str.strip, as Jinja's `trim` is: what chat templates do to contents.
#pragma once

#include "absl/strings/string_view.h"

namespace mt {

// Without the white space, Unicode's included (str.isspace), at both ends.
absl::string_view PythonStrip(absl::string_view text);
// str.strip(character).
absl::string_view StripCharacter(absl::string_view text, char character);

}  // namespace mt
