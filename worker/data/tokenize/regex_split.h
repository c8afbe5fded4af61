// Splits by any regular expression, run by PCRE2's JIT: a few tens of MB/s, where the known patterns' matchers do hundreds.
#pragma once

#include <memory>
#include <string>

#include "worker/data/tokenize/pre_tokenizer.h"

namespace mt {

// INVALID_ARGUMENT: not a regular expression, or one that regex_syntax.h does not translate; says where.
absl::StatusOr<std::unique_ptr<PreTokenizer>> NewRegexSplit(const SplitPattern& pattern);

}  // namespace mt
