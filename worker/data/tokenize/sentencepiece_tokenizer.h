// SentencePiece models, through libsentencepiece (sentencepiece_plugin.h says how it is kept apart).
#pragma once

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

// `path` is the tokenizer's spec() and for messages. INVALID_ARGUMENT: `serialized` is no model. FAILED_PRECONDITION: the library is
// not there.
absl::StatusOr<std::unique_ptr<Tokenizer>> NewSentencePieceTokenizer(const std::string& path,
                                                                     absl::string_view serialized);

}  // namespace mt
