// tokenizer.json of Hugging Face tokenizers: those whose model is byte-pair encoding, byte-level (GPT-2, Llama 3, Qwen, DeepSeek,
// gpt-oss) or over characters with byte fallback (Llama 2, Mistral, Gemma). docs/spec/tokenizers.md says what is understood.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/tokenize/bpe_tokenizer.h"

namespace mt {

// `name` is the file's, for messages; spec, digest and eod are the caller's to fill. INVALID_ARGUMENT: not a tokenizer.json, or one
// that contradicts itself; the message has the place. UNIMPLEMENTED: it asks for something that is not there.
absl::StatusOr<BpeParts> ParseTokenizerJson(const std::string& name, absl::string_view json);

}  // namespace mt
