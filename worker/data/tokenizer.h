// Text to token ids and back. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"

namespace mt {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Appends the ids of `text`; adds no beginning or end of document. Any bytes are accepted.
  virtual absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) const = 0;
  // Ids that stand for no text (end of document, padding) give nothing. INVALID_ARGUMENT: not an id
  // of this vocabulary.
  virtual absl::StatusOr<std::string> Decode(std::span<const int32_t> ids) const = 0;
  virtual int32_t vocab_size() const = 0;
  // End of document; -1 if the vocabulary has none.
  virtual int32_t eod() const = 0;
  // What NewTokenizer was given, and a digest of what defines the ids ("byte" for the byte
  // tokenizer).
  virtual const std::string& spec() const = 0;
  virtual const std::string& digest() const = 0;
};

// `byte`: one id per byte, 0..255, and 256 for the end of a document: a vocabulary of 257, right
// for any language and with
//   nothing to download.
// a path ending in .model: SentencePiece; the end of a document is its </s>.
// INVALID_ARGUMENT: neither of these, or not a SentencePiece model. NOT_FOUND: no such file.
absl::StatusOr<std::unique_ptr<Tokenizer>> NewTokenizer(Env* env, const std::string& spec);

}  // namespace mt
