// tiktoken's files: a token in base64, a space and its rank (which is its id) per line. The file has neither the pattern that cuts
// texts nor the special tokens: these go with the encoding, which is told by the file's name or by the number of its tokens
// (docs/spec/tokenizers.md has the table).
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/tokenize/bpe_tokenizer.h"

namespace mt {

// The first line looks like one of such a file.
bool IsTiktokenFile(absl::string_view contents);

// spec, digest and eod are the caller's to fill. INVALID_ARGUMENT: a line is wrong, or the encoding is not known; says which.
absl::StatusOr<BpeParts> ParseTiktokenFile(const std::string& path, absl::string_view contents);

}  // namespace mt
