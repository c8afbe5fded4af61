// Tokens that are found in the text before byte-pair encoding sees it: "<|endoftext|>", "<tool_call>", rows of spaces. At every
// place the longest one counts, and what it covers cannot be part of another (Hugging Face's AddedVocabulary).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;      // only where SpecialText::kSpecial asks for it; no text when decoded
  bool normalized = false;   // looked for in the normalized text
  bool single_word = false;  // not beside a letter, a mark, a digit or `_`
  bool strip_left = false;   // takes the white space before it along
  bool strip_right = false;  // and the one behind
};

// Immutable once filled, and then thread-safe.
class AddedTokens {
 public:
  struct Match {
    size_t begin = 0;  // what the token takes, stripped spaces included
    size_t end = 0;
    int32_t id = 0;
  };

  // `token.content` is not empty.
  void Add(const AddedToken& token);
  // The first token in `text` at or after `from`, or none. `from`: 0 or the end of the match before.
  std::optional<Match> Find(absl::string_view text, size_t from, SpecialText special) const;

 private:
  // The longest token that text[at..] begins with.
  const AddedToken* LongestAt(absl::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  bool ordinary_ = false;  // there are tokens that are not special
  std::array<bool, 256> begins_{};
  // A trie: (node << 8 | byte) to node; node 0 is the root.
  absl::flat_hash_map<uint64_t, uint32_t> children_;
  std::vector<int32_t> token_at_ = {-1};  // by node: in tokens_
};

}  // namespace mt
