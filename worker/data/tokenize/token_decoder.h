// Ids back to text, as the decoders of a tokenizer.json say.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

// What each token is written as, and what is done where a text begins and ends. Immutable and thread-safe once filled.
struct TokenDecoder {
  // By id. Of what stands for no text, nothing.
  std::vector<std::string> texts;
  // If not empty: what the token is written as where it is the first of a text (Metaspace drops the space there).
  std::vector<std::string> first_texts;
  // What special tokens are called; their texts are empty.
  absl::flat_hash_map<int32_t, std::string> specials;
  // Of `strip` (a character), at most so many are dropped at the text's ends.
  std::string strip;
  int strip_start = 0;
  int strip_stop = 0;

  // The caller has checked the ids.
  std::string Decode(std::span<const int32_t> ids, SpecialText special) const;
};

// One step of a `decoder`; what a step does to a token, TokenText does.
struct DecoderStep {
  enum class Kind { kByteLevel, kByteFallback, kReplace, kMetaspace } kind;
  std::string from, to;  // kReplace; kMetaspace: the character that stands for a space
};

// What `token` is written as after `steps`; `first`: where it is the first of a text.
std::string TokenText(absl::string_view token, const std::vector<DecoderStep>& steps, bool first);

// The byte that a token of the form <0x0A> stands for; -1: another token.
int ByteOfToken(absl::string_view token);

}  // namespace mt
