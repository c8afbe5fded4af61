// The regular expressions of tokenizer.json are Oniguruma's in its Ruby syntax; PCRE2 reads some of the same text otherwise.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "common/status.h"

namespace mt {

// The pattern that makes PCRE2 (UTF, UCP, multi-line) do what Oniguruma does with `pattern`. Rewritten are
//  - \s and \w, whose sets differ, also inside brackets; \uXXXX;
//  - X{n,m}+, which is possessive in PCRE2 and (?:X{n,m})+ in Oniguruma.
// INVALID_ARGUMENT: the pattern uses what is not translated (\h, \b, X{n}?, sets within brackets, (?m)); says what and where.
absl::StatusOr<std::string> OnigurumaToPcre2(absl::string_view pattern);

}  // namespace mt
