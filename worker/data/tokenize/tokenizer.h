// Text to token ids and back.
//
// A Tokenizer is immutable and thread-safe; what makes encoding fast (caches of pieces seen before) is in a TokenEncoder, of
// which every thread has its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"

namespace mt {

// What happens to text that spells a special token, such as "<|endoftext|>".
enum class SpecialText {
  kOrdinary,  // it is text like any other: what training data and users write cannot end a document
  kSpecial,   // it becomes the token's id: for templates, and Hugging Face's default
};

// One thread's.
class TokenEncoder {
 public:
  virtual ~TokenEncoder() = default;
  // Appends the ids of `text`; adds no beginning or end of document. Any bytes are accepted; what bytes that are not UTF-8 become
  // is in docs/spec/tokenizers.md. Equal texts give equal ids, whatever was encoded before.
  virtual absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) = 0;
  // The same of a text with something before it, such as a special token: where a space is put before nothing but the very first
  // text (Metaspace with prepend_scheme "first"), this one gets none.
  virtual absl::Status EncodeInside(absl::string_view text, std::vector<int32_t>* ids) {
    return Encode(text, ids);
  }
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // The tokenizer must live as long as the encoder.
  virtual std::unique_ptr<TokenEncoder> NewEncoder(
      SpecialText special = SpecialText::kOrdinary) const = 0;
  // With an encoder made for this call: for short texts.
  absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) const {
    return NewEncoder()->Encode(text, ids);
  }
  // The bytes that the ids stand for, also where they are not UTF-8. Special tokens (end of document, padding) give nothing, or
  // with kSpecial what they are called ("<|im_end|>"). INVALID_ARGUMENT: not an id of this vocabulary.
  virtual absl::StatusOr<std::string> Decode(
      std::span<const int32_t> ids, SpecialText special = SpecialText::kOrdinary) const = 0;
  // One more than the largest id.
  virtual int32_t vocab_size() const = 0;
  // End of document; -1 if the vocabulary has none.
  virtual int32_t eod() const = 0;
  // Ids at which a text that a model writes is at its end: eod, and the eos_token_id of a generation_config.json beside the tokenizer.
  virtual std::vector<int32_t> stop_ids() const {
    return eod() < 0 ? std::vector<int32_t>() : std::vector<int32_t>{eod()};
  }
  // The id of a special or added token by its text, such as "<|im_start|>"; -1 if there is none.
  virtual int32_t special_id(absl::string_view text) const = 0;
  // What NewTokenizer was given, and a digest of what defines the ids ("byte" for the byte
  // tokenizer).
  virtual const std::string& spec() const = 0;
  virtual const std::string& digest() const = 0;
};

// `byte`: one id per byte, 0..255, and 256 for the end of a document: a vocabulary of 257, right
// for any language and with nothing to download. Otherwise a path, and what is there tells by its contents what it is:
//  - a tokenizer.json of Hugging Face, or a folder with one (tokenizer_config.json beside it names the end of a document);
//  - a SentencePiece model: the end of a document is its </s>;
//  - a tiktoken file (base64 and a rank per line): NAME.tiktoken, or Llama 3's tokenizer.model. docs/spec/tokenizers.md says which
//    pattern and which special tokens it gets.
// INVALID_ARGUMENT: none of these, or a broken one; the message names file, place and remedy. NOT_FOUND: no such file.
// UNIMPLEMENTED: a tokenizer.json that asks for something this program does not do, by name.
absl::StatusOr<std::unique_ptr<Tokenizer>> NewTokenizer(Env* env, const std::string& spec);

}  // namespace mt
